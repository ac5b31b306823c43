#include "guest/agent/boot.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/log.h"
#include "base/status.h"
#include "guest/agent/files.h"

namespace lamina::guest {
namespace {

absl::Status MountAt(const char* type, const char* target, unsigned long flags, const char* options) {
  if (mkdir(target, 0755) != 0 && errno != EEXIST) return ErrnoStatus(errno, fmt::format("mkdir {}", target));
  if (mount(type, target, type, flags, options) != 0 && errno != EBUSY) {
    return ErrnoStatus(errno, fmt::format("mount {} on {}", type, target));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status EscapeInitramfs() {
  if (mkdir("/root", 0755) != 0 && errno != EEXIST) return ErrnoStatus(errno, "mkdir /root");
  if (mount("/", "/root", nullptr, MS_BIND, nullptr) != 0)
    return ErrnoStatus(errno, "bind the initramfs to /root");
  if (chdir("/root") != 0) return ErrnoStatus(errno, "chdir /root");
  if (mount(".", "/", nullptr, MS_MOVE, nullptr) != 0)
    return ErrnoStatus(errno, "move the root mount over /");
  if (chroot(".") != 0 || chdir("/") != 0) return ErrnoStatus(errno, "chroot to the moved root");
  return absl::OkStatus();
}

absl::Status MountBaseFileSystems() {
  constexpr unsigned long kStrict = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  RETURN_IF_ERROR(MountAt("proc", "/proc", kStrict, nullptr));
  RETURN_IF_ERROR(MountAt("sysfs", "/sys", kStrict, nullptr));
  RETURN_IF_ERROR(MountAt("devtmpfs", "/dev", MS_NOSUID, "mode=0755"));
  for (int fd = 0; fd < 3; ++fd) {
    if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0) return ErrnoStatus(errno, "open /dev/null");
  }
  RETURN_IF_ERROR(MountAt("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"));
  RETURN_IF_ERROR(MountAt("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777"));
  RETURN_IF_ERROR(MountAt("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755"));
  RETURN_IF_ERROR(MountAt("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777"));
  return MountAt("cgroup2", "/sys/fs/cgroup", kStrict, "nsdelegate");
}

std::string SubtreeControlOf(std::string_view controllers) {
  std::string control;
  while (!controllers.empty()) {
    const size_t space = controllers.find(' ');
    const std::string_view name = controllers.substr(0, space);
    controllers = space == std::string_view::npos ? std::string_view() : controllers.substr(space + 1);
    if (name.empty()) continue;
    if (!control.empty()) control += ' ';
    control += '+';
    control += name;
  }
  return control;
}

absl::Status EnableCgroupControllers(const std::string& root) {
  const std::string ours = root + "/lamina";
  if (mkdir(ours.c_str(), 0755) != 0 && errno != EEXIST) return ErrnoStatus(errno, "mkdir " + ours);
  // Level by level: a cgroup can only hand down what its parent has handed to it.
  for (const std::string& level : {root, ours}) {
    ASSIGN_OR_RETURN(const std::string controllers, ReadKernelFile(level + "/cgroup.controllers"));
    RETURN_IF_ERROR(WriteKernelFile(level + "/cgroup.subtree_control", SubtreeControlOf(controllers)));
  }
  return absl::OkStatus();
}

void RaiseLimits() {
  // What containerd's unit file gives to containers on a node.
  const rlimit files{1048576, 1048576};
  if (setrlimit(RLIMIT_NOFILE, &files) != 0)
    LogWarning("setrlimit NOFILE: {}", Message(ErrnoStatus(errno, "")));
  const rlimit unlimited{RLIM_INFINITY, RLIM_INFINITY};
  for (const auto resource : {RLIMIT_NPROC, RLIMIT_CORE}) setrlimit(resource, &unlimited);
  for (const auto& [path, value] : {std::pair{"/proc/sys/kernel/pid_max", "4194304"},
                                    std::pair{"/sys/devices/system/memory/auto_online_blocks", "online"}}) {
    const absl::Status written = WriteKernelFile(path, value);
    if (!written.ok()) LogWarning("{}", Message(written));
  }
}

}  // namespace lamina::guest
