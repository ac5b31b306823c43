// The agent's children: crun's runs and, adopted when crun ends, the containers' processes. The agent reaps
// all that end in the guest, also strangers.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/subprocess.h"

namespace lamina::guest {

struct ProcessExit {
  int status = 0;  // 0-255, 128 + signal
};

class ProcessTable;

// One process of which the exit will be known. Thread-safe.
class TrackedProcess {
 public:
  pid_t pid() const { return pid_; }

 private:
  friend class ProcessTable;
  pid_t pid_ = 0;
  std::optional<ProcessExit> exit_;  // guarded by the table's mutex
  std::function<void()> on_exit_;
};

using ProcessRef = std::shared_ptr<TrackedProcess>;

// Thread-safe.
class ProcessTable {
 public:
  // Starts a child. Its pid cannot be reaped before it is tracked.
  absl::StatusOr<ProcessRef> Start(const SpawnOptions& options);

  // While one of these lives, the exits of unknown processes are remembered, so that a container's process
  // that ends before Adopt has its status.
  class AdoptScope {
   public:
    explicit AdoptScope(ProcessTable& table);
    ~AdoptScope();
    AdoptScope(const AdoptScope&) = delete;
    AdoptScope& operator=(const AdoptScope&) = delete;

   private:
    ProcessTable& table_;
  };
  // Tracks a process that crun has left to the agent. `on_exit` runs once, on the reaping thread or in this
  // call, before waiters are told.
  ProcessRef Adopt(pid_t pid, std::function<void()> on_exit);

  // Nothing when `deadline` passed first; without one it waits for ever.
  std::optional<ProcessExit> Wait(const ProcessRef& process,
                                  std::optional<std::chrono::steady_clock::time_point> deadline);
  std::optional<ProcessExit> Exit(const ProcessRef& process);

  // kill(2), only while the process has not been reaped: never hits a pid's next owner. NotFound once it has
  // ended.
  absl::Status Signal(const ProcessRef& process, int signal);
  absl::Status SignalGroup(const ProcessRef& process, int signal);

  // Reaps every child that has ended. Called by the thread that gets SIGCHLD.
  void Reap();

 private:
  Mutex mutex_;
  CondVar changed_;
  std::map<pid_t, ProcessRef> live_ GUARDED_BY(mutex_);
  std::map<pid_t, ProcessExit> strangers_ GUARDED_BY(mutex_);
  int adopting_ GUARDED_BY(mutex_) = 0;
};

}  // namespace lamina::guest
