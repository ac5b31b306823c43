#include "base/process.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>

#include "base/file_system.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace lamina {

absl::StatusOr<uint64_t> ProcessStartTime(pid_t pid) {
  ASSIGN_OR_RETURN(const std::string stat, FileSystem::Real().Read(fmt::format("/proc/{}/stat", pid), 4096));
  // The command name (field 2) may hold spaces and brackets: count from the last ')'.
  const size_t end = stat.rfind(')');
  if (end == std::string::npos || end + 2 >= stat.size()) {
    return MakeStatus(absl::StatusCode::kInternal, "/proc/{}/stat: unreadable", pid);
  }
  if (stat[end + 2] == 'Z' || stat[end + 2] == 'X')
    return MakeStatus(absl::StatusCode::kNotFound, "pid {} has ended", pid);
  size_t at = end + 2;
  for (int field = 3; field < 22; ++field) {
    at = stat.find(' ', at);
    if (at == std::string::npos)
      return MakeStatus(absl::StatusCode::kInternal, "/proc/{}/stat: too short", pid);
    ++at;
  }
  return strtoull(stat.c_str() + at, nullptr, 10);
}

bool ProcessAlive(pid_t pid, uint64_t start_time) {
  const auto now = ProcessStartTime(pid);
  return now.ok() && *now == start_time;
}

absl::Status KillProcess(pid_t pid, uint64_t start_time, std::chrono::milliseconds timeout) {
  if (pid <= 0) return absl::OkStatus();
  const UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  // The descriptor names one process for ever: if the start time fits now, it is the right one. Also one
  // whose first thread has ended is waited for: the others may still hold its memory and its cgroup.
  if (!pidfd || ProcessStartTime(pid).value_or(0) != start_time) {
    waitpid(pid, nullptr, WNOHANG);
    return absl::OkStatus();
  }
  syscall(SYS_pidfd_send_signal, pidfd.get(), SIGKILL, nullptr, 0);
  pollfd poll_fd{pidfd.get(), POLLIN, 0};
  int ready;
  do {
    ready = poll(&poll_fd, 1, static_cast<int>(timeout.count()));
  } while (ready < 0 && errno == EINTR);
  waitpid(pid, nullptr, WNOHANG);
  if (ready == 0) return MakeStatus(absl::StatusCode::kDeadlineExceeded, "process {} does not die", pid);
  return absl::OkStatus();
}

}  // namespace lamina
