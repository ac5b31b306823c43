// The one state of this shim's sandbox, in memory and on disk.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "base/file_system.h"
#include "base/mutex.h"
#include "persist/sandbox_state.h"
#include "persist/state_store.h"

namespace lamina::cri {

// Thread-safe. Changes are written one after another; who only looks never waits for the disk.
class StateBook {
 public:
  using Edit = std::function<void(persist::SandboxState&)>;

  StateBook(FileSystem& fs, const std::string& state_dir) : store_(fs, state_dir) {}

  // Begins with this state, a new sandbox's or one that was read from its file. Nothing is written.
  void Restore(persist::SandboxState state);

  // All or nothing: OK once the file holds the change, else neither file nor memory has it.
  absl::Status Change(const Edit& edit);
  // For what has happened whether the disk takes it or not: memory has it in any case.
  absl::Status Record(const Edit& edit);
  // The clean-up has begun: changes stay in memory from here on, so that a late one does not bring the file
  // back.
  void Close();

  persist::SandboxState Get() const;
  // `look` is a function of const SandboxState&; it must not keep a reference, nor call this class.
  template <typename F>
  auto Look(F look) const {
    MutexLock lock(mutex_);
    return look(state_);
  }
  // Where the file lies.
  std::string path() const;

 private:
  absl::Status Write(const Edit& edit, bool keep);

  persist::StateStore store_;
  Mutex write_mutex_;  // held while the file is written; before mutex_
  bool closed_ GUARDED_BY(write_mutex_) = false;
  mutable Mutex mutex_;
  persist::SandboxState state_ GUARDED_BY(mutex_);
};

}  // namespace lamina::cri
