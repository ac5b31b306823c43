#include "base/process.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <string>
#include <string_view>

#include "absl/strings/numbers.h"
#include "base/file_system.h"
#include "base/status.h"

namespace lamina {
namespace {

using std::chrono::steady_clock;

// Fields of /proc/<pid>/stat as proc(5) counts them.
constexpr int kState = 3, kThreads = 20, kStartTime = 22;

absl::Status Ended(int64_t pid) {
  return MakeStatus(absl::StatusCode::kNotFound, "process {} has ended", pid);
}

// NotFound unless that very process lives; another error when it could not be told.
absl::Status CheckAlive(const ProcessId& process) {
  if (process.pid <= 0 || process.pid > std::numeric_limits<pid_t>::max()) return Ended(process.pid);
  ASSIGN_OR_RETURN(const uint64_t start_time, ProcessStartTime(static_cast<pid_t>(process.pid)));
  return start_time == process.start_time ? absl::OkStatus() : Ended(process.pid);
}

}  // namespace

absl::StatusOr<uint64_t> ProcessStartTime(pid_t pid) {
  const std::string path = fmt::format("/proc/{}/stat", pid);
  const absl::StatusOr<std::string> stat = FileSystem::Real().Read(path, 4096);
  // A process that ends between open and read: ESRCH.
  if (!stat.ok()) return access(path.c_str(), F_OK) == 0 ? stat.status() : Ended(pid);
  // The command name (field 2) may hold spaces and brackets: count from the last ')'.
  const size_t name_end = stat->rfind(')');
  std::string_view rest = *stat;
  rest.remove_prefix(name_end == std::string::npos ? rest.size() : std::min(rest.size(), name_end + 2));
  char state = 0;
  uint64_t threads = 0, start_time = 0;
  for (int field = kState; field <= kStartTime; ++field) {
    const std::string_view text = rest.substr(0, rest.find(' '));
    if (text.empty()) return MakeStatus(absl::StatusCode::kInternal, "{}: too short", path);
    if (field == kState) state = text[0];
    uint64_t* const number = field == kThreads ? &threads : field == kStartTime ? &start_time : nullptr;
    if (number != nullptr && !absl::SimpleAtoi({text.data(), text.size()}, number))
      return MakeStatus(absl::StatusCode::kInternal, "{}: field {} is not a number", path, field);
    rest.remove_prefix(std::min(rest.size(), text.size() + 1));
  }
  // A zombie counts among its threads until it is reaped: those that still run are the others.
  if (state == 'X' || (state == 'Z' && threads <= 1)) return Ended(pid);
  return start_time;
}

bool ProcessAlive(const ProcessId& process) {
  return CheckAlive(process).code() != absl::StatusCode::kNotFound;
}

absl::StatusOr<UniqueFd> OpenProcess(const ProcessId& process) {
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, static_cast<pid_t>(process.pid), 0)));
  const int error = errno;
  // The descriptor names one process for ever: if the start time fits now, it is the right one.
  RETURN_IF_ERROR(CheckAlive(process));
  if (!pidfd) return ErrnoStatus(error, fmt::format("open process {} (pidfd_open)", process.pid));
  return pidfd;
}

bool AwaitProcessEnd(int pidfd, std::chrono::milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - steady_clock::now()).count();
    pollfd end{pidfd, POLLIN, 0};
    const int ready = poll(&end, 1, static_cast<int>(std::clamp<int64_t>(left, 0, 1'000'000)));
    if (ready > 0) return true;
    if (ready == 0 && left <= 0) return false;
  }
}

absl::Status KillProcess(const ProcessId& process, std::chrono::milliseconds timeout) {
  const absl::StatusOr<UniqueFd> pidfd = OpenProcess(process);
  const auto reap = [&] { waitpid(static_cast<pid_t>(process.pid), nullptr, WNOHANG); };
  if (pidfd.status().code() == absl::StatusCode::kNotFound) {
    if (process.pid > 0) reap();
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(Annotate(pidfd.status(), "kill"));
  if (syscall(SYS_pidfd_send_signal, pidfd->get(), SIGKILL, nullptr, 0) != 0 && errno != ESRCH)
    return ErrnoStatus(errno, fmt::format("kill process {}", process.pid));
  if (!AwaitProcessEnd(pidfd->get(), timeout)) {
    return MakeStatus(absl::StatusCode::kDeadlineExceeded, "process {} does not die within {} ms of SIGKILL",
                      process.pid, timeout.count());
  }
  reap();
  return absl::OkStatus();
}

}  // namespace lamina
