// Processes by pid and start time: together they name one process for ever, beyond the reuse of its pid.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace lamina {

struct ProcessId {
  int64_t pid = 0;          // 0: no process
  uint64_t start_time = 0;  // field 22 of /proc/<pid>/stat, in clock ticks since boot

  friend bool operator==(const ProcessId&, const ProcessId&) = default;
};

// The start time of the process that has this pid now. NotFound when there is none, or when it is a zombie. A
// process whose first thread has ended while others run is none: it holds its memory and its cgroup.
absl::StatusOr<uint64_t> ProcessStartTime(pid_t pid);

// True while that very process lives: from its fork until its last thread has ended. Also true when it could
// not be told (no free descriptor): what a living process holds must not be given away.
bool ProcessAlive(const ProcessId& process);
inline bool ProcessAlive(pid_t pid, uint64_t start_time) { return ProcessAlive({pid, start_time}); }

// A pidfd of that very process, readable once its last thread has ended. NotFound when it does not live;
// ResourceExhausted without a free descriptor.
absl::StatusOr<UniqueFd> OpenProcess(const ProcessId& process);

// Waits until the process behind a pidfd has ended; does not reap it. False when `timeout` passed first.
bool AwaitProcessEnd(int pidfd, std::chrono::milliseconds timeout);

// SIGKILL, then waits until the process is gone, and reaps it if it is a child. Not alive: OK.
// DeadlineExceeded after `timeout`; other errors: it could not be told whether it lives.
absl::Status KillProcess(const ProcessId& process, std::chrono::milliseconds timeout);
inline absl::Status KillProcess(pid_t pid, uint64_t start_time, std::chrono::milliseconds timeout) {
  return KillProcess({pid, start_time}, timeout);
}

}  // namespace lamina
