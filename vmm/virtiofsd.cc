#include "vmm/virtiofsd.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/file_system.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/unique_fd.h"

namespace lamina::vmm {

using std::chrono::steady_clock;

namespace {
constexpr std::chrono::seconds kEndTimeout{5};
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

absl::StatusOr<VirtiofsdProcess> StartVirtiofsd(const VirtiofsdOptions& options) {
  SpawnOptions spawn;
  // chroot instead of a mount namespace of its own: binds that are made later are seen.
  spawn.argv = {options.program,
                "--socket-path=" + options.socket,
                "-o",
                "source=" + options.shared_dir,
                "-o",
                "cache=auto",
                "-o",
                "sandbox=chroot",
                "-o",
                "xattr",
                "-o",
                "announce_submounts",
                "--thread-pool-size=4"};
  spawn.log_path = options.log_path;
  // With one arena malloc never asks for the number of CPUs, a call for which its seccomp filter kills it:
  // QEMU 7.2's allows none, and glibc 2.36's malloc makes it once threads have filled eight arenas.
  spawn.env = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "MALLOC_ARENA_MAX=1"};
  // A socket that an earlier one left would look like readiness.
  if (unlink(options.socket.c_str()) != 0 && errno != ENOENT)
    return ErrnoStatus(errno, "remove " + options.socket);
  spawn.cgroup_procs_files = options.cgroup_procs_files;
  ASSIGN_OR_RETURN(const pid_t pid, Spawn(spawn));
  VirtiofsdProcess process;
  process.pid = pid;
  process.pidfd = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  process.socket = options.socket;
  process.start_time = ProcessStartTime(pid).value_or(0);
  if (options.on_started) {
    const absl::Status told = options.on_started(pid, process.start_time);
    if (!told.ok()) {
      KillProcess(pid, process.start_time, kEndTimeout).IgnoreError();
      return told;
    }
  }
  const auto deadline = steady_clock::now() + options.timeout;
  while (access(options.socket.c_str(), F_OK) != 0) {
    const bool alive = ProcessAlive(pid, process.start_time);
    if (alive && steady_clock::now() < deadline) {
      poll(nullptr, 0, 2);  // virtiofsd tells nobody when its socket is there
      continue;
    }
    KillProcess(pid, process.start_time, kEndTimeout).IgnoreError();
    const std::string log = FileSystem::Real().Read(options.log_path, 1 << 20).value_or("");
    return MakeStatus(absl::StatusCode::kInternal, "{} {}: {}", options.program,
                      alive ? "did not open its socket in time" : "ended at once",
                      log.size() > 300 ? log.substr(log.size() - 300) : log);
  }
  return process;
}

}  // namespace lamina::vmm
