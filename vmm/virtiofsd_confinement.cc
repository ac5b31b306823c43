#include "vmm/virtiofsd_confinement.h"

#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/securebits.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "base/status.h"

namespace lamina::vmm {
namespace {

constexpr uint64_t Bit(int capability) { return uint64_t{1} << capability; }

// With the last two it enters the shared directory and empties its bounding set, and then it drops them,
// before it hears a word of the guest.
constexpr uint64_t kCapabilities = kVirtiofsdCapabilities | Bit(CAP_SYS_CHROOT) | Bit(CAP_SETPCAP);
static_assert(kVirtiofsdCapabilities ==
              (Bit(CAP_CHOWN) | Bit(CAP_DAC_OVERRIDE) | Bit(CAP_FOWNER) | Bit(CAP_FSETID) | Bit(CAP_SETGID) |
               Bit(CAP_SETUID) | Bit(CAP_SETFCAP)));

// A descriptor for each inode that the guest knows, as many as it would allow itself.
constexpr rlim_t kOpenFiles = 1'000'000;

constexpr char kFileMax[] = "/proc/sys/fs/file-max";

}  // namespace

absl::StatusOr<VirtiofsdConfinement> VirtiofsdConfinement::Make(const std::string& program,
                                                                const std::string& shared_dir,
                                                                VirtiofsdReach reach) {
  VirtiofsdConfinement made(reach);
  if (reach == VirtiofsdReach::kShared) return made;
  constexpr uint64_t kStrict = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
  ASSIGN_OR_RETURN(const std::vector<std::string> files, ProgramFiles(program));
  for (const std::string& file : files)
    RETURN_IF_ERROR(made.root_.Add(file, file, kStrict | MOUNT_ATTR_RDONLY));
  // It does not start without this file, and keeps an open way to its procfs, which therefore shows it
  // processes and nothing else of /proc.
  RETURN_IF_ERROR(made.root_.Add(kFileMax, kFileMax, kStrict | MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOEXEC));
  made.root_.AddProc("/processes");
  made.root_.AddLink("/proc/self", "/processes/self");
  RETURN_IF_ERROR(made.root_.AddTree(shared_dir, shared_dir, kStrict | MOUNT_ATTR_NOEXEC));
  return made;
}

// The system calls themselves: those of the C library would first speak to threads that a fork has not.
const char* VirtiofsdConfinement::Enter() const {
  const bool own = reach_ == VirtiofsdReach::kPrivate;
  if (own) {
    if (unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET) != 0) return "make namespaces";
    if (const char* failed = root_.Enter(); failed != nullptr) return failed;
  }
  // It would raise the limit itself, for which it has no capability any more.
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return "RLIMIT_NOFILE";
  rlimit wanted{std::max(files.rlim_cur, kOpenFiles), std::max(files.rlim_max, kOpenFiles)};
  if (setrlimit(RLIMIT_NOFILE, &wanted) != 0) {
    wanted = {files.rlim_max, files.rlim_max};
    if (setrlimit(RLIMIT_NOFILE, &wanted) != 0) return "RLIMIT_NOFILE";
  }
  if (syscall(SYS_setgroups, 0, nullptr) != 0 && own) return "setgroups";
  // The session's keys are ours; a kernel without keys refuses, and has none.
  syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, nullptr);
  if (prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED, 0, 0, 0) != 0 && own)
    return "PR_SET_SECUREBITS";
  DropBoundingCapabilities(kCapabilities);
  if (const char* failed = DropCapabilities(kCapabilities); failed != nullptr) return failed;
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 ? nullptr : "PR_SET_NO_NEW_PRIVS";
}

}  // namespace lamina::vmm
