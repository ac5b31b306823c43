#include "base/beneath.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "base/status.h"

namespace lamina {

absl::StatusOr<UniqueFd> OpenBeneath(int directory, const std::string& path, int flags, OtherMounts mounts) {
  open_how how{};
  how.flags = static_cast<uint64_t>(flags | O_CLOEXEC);
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  if (mounts == OtherMounts::kRefused) how.resolve |= RESOLVE_NO_XDEV;
  for (;;) {
    const long fd = syscall(SYS_openat2, directory, path.c_str(), &how, sizeof how);
    if (fd >= 0) return UniqueFd(static_cast<int>(fd));
    // EAGAIN: a rename elsewhere made it impossible to say that ".." stayed beneath.
    if (errno == EINTR || errno == EAGAIN) continue;
    if (errno == ELOOP || errno == EXDEV) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition, "open {}: {} is in the way", path,
                        errno == ELOOP ? "a symbolic link" : "another mount");
    }
    return ErrnoStatus(errno, "open " + path);
  }
}

}  // namespace lamina
