#include "vmm/qemu_launch.h"

#include <climits>
#include <cstdlib>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/private_root.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/unique_fd.h"
#include "base/unix_socket.h"
#include "vmm/qemu_command.h"
#include "vmm/qemu_confinement.h"
#include "vmm/qemu_files.h"
#include "vmm/vm_users.h"

namespace lamina::vmm {
namespace {

// What QEMU inherits: closed here when it has it, so that its end is the end of its sockets.
class Inheritance {
 public:
  absl::Status Open(const VmSpec& spec, int tap_fd) {
    if (tap_fd >= 0) numbers_.emplace_back(tap_fd, spec.tap_fd);
    const std::string& dir = spec.runtime_dir;
    for (const auto& [number, path] : {std::pair{kQmpFd, QmpSocket(dir)}, std::pair{kRpcFd, RpcSocket(dir)},
                                       std::pair{kStdioFd, StdioSocket(dir)}}) {
      RETURN_IF_ERROR(Keep(ListenUnix(path), number));
    }
    if (!spec.virtiofs_socket.empty()) RETURN_IF_ERROR(Keep(ConnectUnix(spec.virtiofs_socket), kVirtiofsFd));
    for (size_t i = 0; i < spec.boot_arenas.size(); ++i)
      RETURN_IF_ERROR(Keep(OpenArena(spec.boot_arenas[i]), kFirstArenaFd + static_cast<int>(i)));
    return absl::OkStatus();
  }
  const std::vector<std::pair<int, int>>& numbers() const { return numbers_; }

 private:
  absl::Status Keep(absl::StatusOr<UniqueFd> fd, int number) {
    if (!fd.ok()) return fd.status();
    numbers_.emplace_back(fd->get(), number);
    fds_.push_back(std::move(*fd));
    return absl::OkStatus();
  }
  std::vector<UniqueFd> fds_;
  std::vector<std::pair<int, int>> numbers_;  // ours, QEMU's
};

absl::StatusOr<pid_t> SpawnConfined(VmSpec spec, SpawnOptions spawn, const StartOptions& options) {
  char path[PATH_MAX];
  const std::string found = FindProgram(spec.qemu);
  if (realpath(found.c_str(), path) == nullptr) return ErrnoStatus(errno, "program " + found);
  spec.qemu = path;
  spawn.argv[0] = path;
  ASSIGN_OR_RETURN(const VmUser user, TakeVmUser(options.users, options.users_lock));
  absl::Status first;
  for (const QemuReach reach : {QemuReach::kPrivate, QemuReach::kUserOnly}) {
    ASSIGN_OR_RETURN(const QemuConfinement setup,
                     QemuConfinement::Make(spec, reach, user.uid, !options.netns_path.empty()));
    spawn.setup = &setup;
    absl::StatusOr<pid_t> pid = Spawn(spawn);
    if (pid.ok()) {
      if (!first.ok())
        LogWarning("{}: QEMU (user {}) has no root and no namespaces of its own: {}", spec.name, user.uid,
                   Message(first));
      return pid;
    }
    if (first.ok()) first = pid.status();
    if (!RefusedByNode(first)) break;
  }
  return first;
}

}  // namespace

absl::StatusOr<pid_t> LaunchQemu(const VmSpec& spec, const QemuCommand& command,
                                 const StartOptions& options) {
  Inheritance inheritance;
  RETURN_IF_ERROR(inheritance.Open(spec, options.tap_fd));
  SpawnOptions spawn;
  spawn.argv = command.argv;
  spawn.env = {kProgramPath};
  spawn.oom_score_adj = options.oom_score_adj;
  spawn.netns_path = options.netns_path;
  spawn.log_path = QemuLog(spec.runtime_dir);
  spawn.cgroup_procs_files = options.cgroup_procs_files;
  spawn.fds = inheritance.numbers();
  return options.users.empty() ? Spawn(spawn) : SpawnConfined(spec, std::move(spawn), options);
}

}  // namespace lamina::vmm
