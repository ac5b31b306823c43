// Processes by pid and start time: together they name one process for ever, beyond the reuse of its pid.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina {

// Field 22 of /proc/<pid>/stat, in clock ticks since boot: with the pid, names a process for ever. NotFound
// if gone (a zombie counts as gone).
absl::StatusOr<uint64_t> ProcessStartTime(pid_t pid);

// True while that very process lives (not a zombie).
bool ProcessAlive(pid_t pid, uint64_t start_time);

// SIGKILL by pid and start time, waits until it is gone. Not running: OK.
absl::Status KillProcess(pid_t pid, uint64_t start_time, std::chrono::milliseconds timeout);

}  // namespace lamina
