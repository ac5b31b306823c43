#include "guest/agent/in_volume.h"

#include <fcntl.h>

#include <cerrno>
#include <climits>

#include "base/status.h"

namespace lamina::guest {
namespace {

absl::StatusOr<UniqueFd> OpenRoot(const std::string& root, int flags) {
  UniqueFd found(open(root.c_str(), O_PATH | O_CLOEXEC | O_NOFOLLOW | flags));
  if (!found) return ErrnoStatus(errno, "open " + root);
  return found;
}

absl::StatusOr<UniqueFd> OpenBelow(const std::string& root, const std::string& path, int flags,
                                   OtherMounts mounts) {
  RETURN_IF_ERROR(CheckRelative(path, "path in " + root));
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenRoot(root, O_DIRECTORY));
  absl::StatusOr<UniqueFd> found = OpenBeneath(folder.get(), path, O_PATH | flags, mounts);
  if (!found.ok()) return Annotate(found.status(), "in " + root);
  return found;
}

}  // namespace

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

absl::StatusOr<UniqueFd> OpenInVolume(const std::string& root, const std::string& path, OtherMounts mounts) {
  return path.empty() ? OpenRoot(root, 0) : OpenBelow(root, path, 0, mounts);
}

absl::Status EnterFolder(const std::string& root, const std::string& path) {
  const absl::Status entered = OpenBelow(root, path, O_DIRECTORY, OtherMounts::kEntered).status();
  if (entered.ok()) return entered;
  return OpenBelow(root, path, 0, OtherMounts::kEntered).status();  // it may be a file
}

}  // namespace lamina::guest
