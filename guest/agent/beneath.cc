#include "guest/agent/beneath.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdint>

#include "base/status.h"

namespace lamina::guest {

absl::Status CheckRelative(std::string_view path, std::string_view what) {
  bool fine = !path.empty() && path.size() < PATH_MAX && path.find('\0') == std::string_view::npos;
  for (std::string_view rest = path; fine;) {
    const size_t slash = rest.find('/');
    const std::string_view part = rest.substr(0, slash);
    fine = !part.empty() && part != "." && part != "..";
    if (slash == std::string_view::npos) break;
    rest = rest.substr(slash + 1);
  }
  if (fine) return absl::OkStatus();
  return InvalidArgument("{} \"{}\": want a path of names without \".\" and \"..\"", what,
                         path.substr(0, 160));
}

namespace {

absl::StatusOr<UniqueFd> OpenRoot(const std::string& root, bool folder_only) {
  const int kind = folder_only ? O_DIRECTORY : 0;
  UniqueFd found(open(root.c_str(), O_PATH | O_CLOEXEC | O_NOFOLLOW | kind));
  if (!found) return ErrnoStatus(errno, "open " + root);
  return found;
}

// errno says why not.
UniqueFd OpenAt2(const UniqueFd& folder, const std::string& path, uint64_t flags, uint64_t resolve) {
  open_how how{};
  how.flags = O_PATH | O_CLOEXEC | flags;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | resolve;
  return UniqueFd(static_cast<int>(syscall(SYS_openat2, folder.get(), path.c_str(), &how, sizeof how)));
}

absl::Status Refused(const std::string& root, const std::string& path) {
  if (errno != ELOOP && errno != EXDEV) return ErrnoStatus(errno, fmt::format("open {}/{}", root, path));
  return MakeStatus(absl::StatusCode::kFailedPrecondition, "{}/{}: a link or a mount is in the way", root,
                    path);
}

}  // namespace

absl::StatusOr<UniqueFd> OpenBeneath(const std::string& root, const std::string& path, bool cross_mounts) {
  if (path.empty()) return OpenRoot(root, false);
  RETURN_IF_ERROR(CheckRelative(path, "path in " + root));
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenRoot(root, true));
  UniqueFd found = OpenAt2(folder, path, 0, cross_mounts ? 0 : RESOLVE_NO_XDEV);
  if (!found) return Refused(root, path);
  return found;
}

absl::Status EnterBeneath(const std::string& root, const std::string& path) {
  RETURN_IF_ERROR(CheckRelative(path, "path in " + root));
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenRoot(root, true));
  if (OpenAt2(folder, path, O_DIRECTORY, 0) || errno == ENOTDIR) return absl::OkStatus();
  return Refused(root, path);
}

}  // namespace lamina::guest
