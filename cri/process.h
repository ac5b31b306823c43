// One process of the pod as containerd sees it: the sandbox itself, a container's init, or an exec.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "guest/protocol/stdio_mux.h"

namespace lamina::cri {

struct StdioPaths {
  std::string in, out, err;
  bool terminal = false;
};

struct StreamIds {
  uint32_t in = 0, out = 0, err = 0;
};

// The FIFOs that containerd made, connected to streams of the guest. Thread-safe.
class ProcessStdio {
 public:
  // Opens what is named and attaches it to the mux; `first_id` and the two after it become the stream ids.
  // NotFound names a FIFO that is missing.
  static absl::StatusOr<std::shared_ptr<ProcessStdio>> Open(const StdioPaths& paths, guest::StdioMux& mux,
                                                            uint32_t first_id);

  StreamIds ids() const { return ids_; }
  uint32_t first_id() const { return first_id_; }
  // Lets the guest see the end of stdin once what is in the FIFO has been read. Idempotent.
  void CloseStdin();
  // Waits until the output is written, at most until the deadline; then drops the streams.
  void DrainAndClose(std::chrono::milliseconds timeout);

 private:
  ProcessStdio() = default;
  struct Open_ {
    Mutex mutex;
    CondVar changed;
    int outputs GUARDED_BY(mutex) = 0;
  };

  guest::StdioMux* mux_ = nullptr;
  uint32_t first_id_ = 0;
  StreamIds ids_;
  std::shared_ptr<Open_> open_ = std::make_shared<Open_>();
  Mutex mutex_;
  UniqueFd stdin_holder_ GUARDED_BY(mutex_);  // a writer of ours, so that the FIFO has no end before CloseIO
};

enum class ProcessStatus { kCreated, kRunning, kStopped };

struct ExitInfo {
  uint32_t status = 0;
  int64_t unix_nanos = 0;
};

// Thread-safe.
class Process {
 public:
  // `bundle`: of the container, as containerd named it; exec_id empty: the container's init.
  Process(std::string container_id, std::string exec_id, std::string bundle, StdioPaths paths,
          std::shared_ptr<ProcessStdio> stdio)
      : container_id(std::move(container_id)),
        exec_id(std::move(exec_id)),
        bundle(std::move(bundle)),
        paths(std::move(paths)),
        stdio(std::move(stdio)) {}

  const std::string container_id, exec_id, bundle;
  const StdioPaths paths;
  const std::shared_ptr<ProcessStdio> stdio;  // null: none

  ProcessStatus status() const;
  uint32_t pid() const;
  void SetRunning(uint32_t pid);
  void SetPid(uint32_t pid);
  // True for the first who asks, of a process that has not been started: that one starts it.
  bool ClaimStart();
  // True for the first who asks: that one sees to it that SIGKILL ends it.
  bool ClaimKill();
  // The first exit counts. True when it was this one.
  bool SetExited(ExitInfo exit);
  std::optional<ExitInfo> exit() const;
  // Blocks until it has exited.
  ExitInfo WaitExit();
  // The same until `deadline`: whether it has.
  bool WaitExitUntil(std::chrono::steady_clock::time_point deadline);

 private:
  mutable Mutex mutex_;
  CondVar exited_;
  ProcessStatus status_ GUARDED_BY(mutex_) = ProcessStatus::kCreated;
  uint32_t pid_ GUARDED_BY(mutex_) = 0;
  bool start_claimed_ GUARDED_BY(mutex_) = false;
  bool kill_claimed_ GUARDED_BY(mutex_) = false;
  std::optional<ExitInfo> exit_ GUARDED_BY(mutex_);
};

}  // namespace lamina::cri
