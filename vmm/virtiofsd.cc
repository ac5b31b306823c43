#include "vmm/virtiofsd.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "base/process.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/unique_fd.h"
#include "vmm/process_log.h"

namespace lamina::vmm {

using std::chrono::steady_clock;

namespace {

constexpr std::chrono::seconds kEndTimeout{5};
constexpr size_t kTailBytes = 300;

absl::Status AwaitSocket(const VirtiofsdProcess& process, const VirtiofsdOptions& options) {
  const auto deadline = steady_clock::now() + options.timeout;
  while (access(options.socket.c_str(), F_OK) != 0) {
    const bool alive = ProcessAlive(process.pid, process.start_time);
    if (!alive || steady_clock::now() >= deadline) {
      return MakeStatus(absl::StatusCode::kInternal, "{} {}: {}", options.program,
                        alive ? "did not open its socket in time" : "ended at once",
                        LogTail(options.log_path, kTailBytes));
    }
    pollfd cancel{options.cancel_fd, POLLIN, 0};  // virtiofsd tells nobody when its socket is there
    if (poll(&cancel, 1, 2) > 0)
      return MakeStatus(absl::StatusCode::kCancelled, "the start of {} was given up", options.program);
  }
  return absl::OkStatus();
}

}  // namespace

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
  spawn.env = {kProgramPath, "MALLOC_ARENA_MAX=1"};
  // A socket that an earlier one left would look like readiness.
  if (unlink(options.socket.c_str()) != 0 && errno != ENOENT)
    return ErrnoStatus(errno, "remove " + options.socket);
  spawn.cgroup_procs_files = options.cgroup_procs_files;
  spawn.oom_score_adj = options.oom_score_adj;
  ASSIGN_OR_RETURN(const pid_t pid, Spawn(spawn));
  VirtiofsdProcess process;
  process.pid = pid;
  process.socket = options.socket;
  process.pidfd = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  const int pidfd_error = errno;
  process.start_time = ProcessStartTime(pid).value_or(0);
  absl::Status status =
      process.pidfd ? absl::OkStatus() : ErrnoStatus(pidfd_error, "watch virtiofsd (pidfd_open)");
  if (status.ok() && options.on_started) status = options.on_started(pid, process.start_time);
  if (status.ok()) status = AwaitSocket(process, options);
  if (status.ok()) return process;
  kill(pid, SIGKILL);  // still ours: nobody else reaps it
  KillProcess(pid, process.start_time, kEndTimeout).IgnoreError();
  return status;
}

}  // namespace lamina::vmm
