#include "vmm/virtiofsd.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "base/file_system.h"
#include "base/process.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/unique_fd.h"

namespace lamina::vmm {

using std::chrono::steady_clock;

namespace {
constexpr std::chrono::seconds kEndTimeout{5};
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
