#include "vmm/virtiofsd.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <utility>

#include "base/log.h"
#include "base/private_root.h"
#include "base/process.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/unique_fd.h"
#include "base/unix_socket.h"
#include "vmm/virtiofsd_confinement.h"

namespace lamina::vmm {
namespace {

constexpr std::chrono::seconds kEndTimeout{5};
constexpr int kListenFd = 3;

absl::StatusOr<pid_t> SpawnConfined(SpawnOptions spawn, const VirtiofsdOptions& options) {
  absl::Status first;
  for (const VirtiofsdReach reach : {VirtiofsdReach::kPrivate, VirtiofsdReach::kShared}) {
    const auto setup = VirtiofsdConfinement::Make(spawn.argv[0], options.shared_dir, reach);
    if (setup.ok()) spawn.setup = &*setup;
    const absl::StatusOr<pid_t> pid = setup.ok() ? Spawn(spawn) : absl::StatusOr<pid_t>(setup.status());
    if (pid.ok()) {
      if (!first.ok())
        LogWarning("{}: virtiofsd has no root and no namespaces of its own: {}", options.shared_dir,
                   Message(first));
      return pid;
    }
    if (first.ok()) first = pid.status();
    if (!RefusedByNode(first)) break;
  }
  return first;
}

}  // namespace

absl::StatusOr<VirtiofsdProcess> StartVirtiofsd(const VirtiofsdOptions& options) {
  char program[PATH_MAX];
  const std::string found = FindProgram(options.program);
  if (realpath(found.c_str(), program) == nullptr) return ErrnoStatus(errno, "program " + found);
  // It takes one connection, and whoever makes that need not wait until it looks.
  ASSIGN_OR_RETURN(UniqueFd listener, ListenUnix(options.socket, 1));
  SpawnOptions spawn;
  // chroot: its own mount namespace would be one in which nobody mounts volumes. What it would keep of
  // device nodes it does not get (virtiofsd_confinement.h), nor may it raise its limits.
  spawn.argv = {program,
                fmt::format("--fd={}", kListenFd),
                "-o",
                "source=" + options.shared_dir,
                "-o",
                "cache=auto",
                "-o",
                "sandbox=chroot",
                "-o",
                "modcaps=-mknod",
                "-o",
                "xattr",
                "-o",
                "announce_submounts",
                "-o",
                "log_level=warn",
                "--rlimit-nofile=0",
                "--thread-pool-size=4"};
  spawn.log_path = options.log_path;
  // With one arena malloc never asks for the number of CPUs, a call for which its seccomp filter kills it:
  // QEMU 7.2's allows none, and glibc 2.36's malloc makes it once threads have filled eight arenas.
  spawn.env = {kProgramPath, "MALLOC_ARENA_MAX=1"};
  spawn.fds = {{listener.get(), kListenFd}};
  spawn.cgroup_procs_files = options.cgroup_procs_files;
  spawn.oom_score_adj = options.oom_score_adj;
  ASSIGN_OR_RETURN(const pid_t pid, SpawnConfined(std::move(spawn), options));
  listener.reset();  // its end is the end of its socket
  VirtiofsdProcess process;
  process.pid = pid;
  process.socket = options.socket;
  process.pidfd = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  const int pidfd_error = errno;
  process.start_time = ProcessStartTime(pid).value_or(0);
  absl::Status status =
      process.pidfd ? absl::OkStatus() : ErrnoStatus(pidfd_error, "watch virtiofsd (pidfd_open)");
  if (status.ok() && options.on_started) status = options.on_started(pid, process.start_time);
  if (status.ok()) return process;
  kill(pid, SIGKILL);  // still ours: nobody else reaps it
  KillProcess(pid, process.start_time, kEndTimeout).IgnoreError();
  return status;
}

}  // namespace lamina::vmm
