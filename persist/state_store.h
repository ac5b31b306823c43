#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/file_system.h"
#include "persist/sandbox_state.h"

namespace lamina::persist {

// <state_dir>/sandboxes/<id>/state.json, mode 0600 in 0700. Thread-safe as far as the file system is; one
// writer per sandbox.
class StateStore {
 public:
  StateStore(FileSystem& fs, std::string state_dir) : fs_(fs), root_(std::move(state_dir) + "/sandboxes") {}

  std::string Path(const std::string& id) const { return root_ + "/" + id + "/state.json"; }
  // Replaces the file atomically. On error the old content stays, or no file where there was none.
  absl::Status Save(const SandboxState& state);
  // NotFound, DataLoss, FailedPrecondition (newer version) name the file.
  absl::StatusOr<SandboxState> Load(const std::string& id) const;
  // Ids of sandboxes that have a file; what an interrupted Save or Remove left is none.
  absl::StatusOr<std::vector<std::string>> List() const;
  // Idempotent. On error it may be called again.
  absl::Status Remove(const std::string& id);

 private:
  FileSystem& fs_;
  const std::string root_;
};

}  // namespace lamina::persist
