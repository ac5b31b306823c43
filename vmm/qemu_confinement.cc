#include "vmm/qemu_confinement.h"

#include <linux/keyctl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "base/status.h"

namespace lamina::vmm {
namespace {

constexpr char kKvm[] = "/dev/kvm";

// "/usr/bin/qemu-system-x86_64" -> "/usr"
std::string Prefix(const std::string& program) {
  const std::string dir = program.substr(0, program.rfind('/'));
  return dir.substr(0, dir.rfind('/'));
}

}  // namespace

absl::StatusOr<QemuConfinement> QemuConfinement::Make(const VmSpec& spec, QemuReach reach, uid_t uid,
                                                      bool network) {
  QemuConfinement made(reach, uid, network);
  for (const std::string& file : {spec.firmware, spec.kernel, spec.initramfs}) {
    struct stat info {};
    if (stat(file.c_str(), &info) != 0) return ErrnoStatus(errno, "the VM needs " + file);
    if ((info.st_mode & S_IROTH) == 0) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition,
                        "{} has the mode {:04o}: QEMU's user must be able to read it", file,
                        info.st_mode & 07777);
    }
  }
  if (reach == QemuReach::kPrivate) RETURN_IF_ERROR(made.AddFiles(spec));
  // Without a node of its own it takes the group that the node lets use KVM.
  struct stat kvm {};
  if (reach == QemuReach::kUserOnly && spec.accel == Accel::kKvm && stat(kKvm, &kvm) == 0 && kvm.st_gid != 0)
    made.groups_ = {kvm.st_gid};
  return made;
}

absl::Status QemuConfinement::AddFiles(const VmSpec& spec) {
  constexpr uint64_t kReadOnly = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
  ASSIGN_OR_RETURN(const std::vector<std::string> program, ProgramFiles(spec.qemu));
  for (const std::string& file : program) RETURN_IF_ERROR(root_.Add(file, file, kReadOnly));
  for (const std::string& file : {spec.firmware, spec.kernel, spec.initramfs})
    RETURN_IF_ERROR(root_.Add(file, file, kReadOnly | MOUNT_ATTR_NOEXEC));
  // What QEMU finds from its own place: its ROMs for a kernel of its command line, and the emulation where
  // that is a module.
  const std::string prefix = Prefix(spec.qemu);
  const auto add_if_there = [&](const std::string& file, uint64_t attributes) {
    const absl::Status added = root_.Add(file, file, attributes);
    return absl::IsNotFound(added) ? absl::OkStatus() : added;
  };
  for (const char* rom : {"pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin"})
    RETURN_IF_ERROR(add_if_there(prefix + "/share/qemu/" + rom, kReadOnly | MOUNT_ATTR_NOEXEC));
  if (spec.accel == Accel::kTcg) {
    for (const char* modules : {"/lib/x86_64-linux-gnu/qemu", "/lib64/qemu", "/lib/qemu"})
      RETURN_IF_ERROR(add_if_there(prefix + modules + "/accel-tcg-x86_64.so", kReadOnly));
  } else {
    struct stat info {};
    if (stat(kKvm, &info) != 0) return ErrnoStatus(errno, kKvm);
    root_.AddDevice(kKvm, info.st_rdev, uid_);
  }
  root_.AddProc();  // descriptors that it has are opened anew as /proc/self/fd/N
  return absl::OkStatus();
}

// The system calls themselves: those of the C library would first speak to threads that a fork has not.
const char* QemuConfinement::Enter() const {
  if (reach_ == QemuReach::kPrivate) {
    const int network = network_ ? 0 : CLONE_NEWNET;
    if (unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | network) != 0) return "make namespaces";
    if (const char* failed = root_.Enter(); failed != nullptr) return failed;
  }
  DropBoundingCapabilities(0);
  if (syscall(SYS_setgroups, groups_.size(), groups_.data()) != 0) return "setgroups";
  if (syscall(SYS_setresgid, uid_, uid_, uid_) != 0) return "setresgid";
  if (syscall(SYS_setresuid, uid_, uid_, uid_) != 0) return "setresuid";
  // The session's keys are ours; a kernel without keys refuses, and has none.
  syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, nullptr);
  if (const char* failed = DropCapabilities(0); failed != nullptr) return failed;
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 ? nullptr : "PR_SET_NO_NEW_PRIVS";
}

}  // namespace lamina::vmm
