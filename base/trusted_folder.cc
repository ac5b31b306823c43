#include "base/trusted_folder.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/status.h"

namespace lamina {
namespace {

constexpr int kMaxLinks = 40;  // as the kernel's own bound

// Nobody but root can have put into `folder` what is there; where it has the sticky bit, what belongs to
// root.
bool OnlyRootWrites(int folder, const struct stat& entry) {
  struct stat info {};
  if (fstat(folder, &info) != 0 || info.st_uid != 0 || entry.st_uid != 0) return false;
  return (info.st_mode & 022) == 0 || (info.st_mode & S_ISVTX) != 0;
}

absl::StatusOr<std::string> ReadLink(int folder, const std::string& name, const std::string& what) {
  std::string target(PATH_MAX, '\0');
  const ssize_t length = readlinkat(folder, name.c_str(), target.data(), target.size());
  if (length < 0) return ErrnoStatus(errno, what);
  target.resize(static_cast<size_t>(length));
  return target;
}

}  // namespace

absl::StatusOr<UniqueFd> OpenTrustedFolder(const std::string& path) {
  const std::string what = "open folder " + path;
  if (path.empty() || path[0] != '/') return InvalidArgument("{}: not an absolute path", what);
  constexpr int kFlags = O_PATH | O_CLOEXEC | O_NOFOLLOW;
  UniqueFd at(open("/", kFlags | O_DIRECTORY));
  if (!at) return ErrnoStatus(errno, "open /");
  int links = 0;
  for (std::string rest = path; !rest.empty();) {
    const size_t slash = rest.find('/');
    const std::string name = rest.substr(0, slash);
    rest = slash == std::string::npos ? "" : rest.substr(slash + 1);
    if (name.empty() || name == ".") continue;
    UniqueFd next(openat(at.get(), name.c_str(), kFlags));
    struct stat info {};
    if (!next || fstat(next.get(), &info) != 0) return ErrnoStatus(errno, what);
    if (!S_ISLNK(info.st_mode)) {
      at = std::move(next);
      continue;
    }
    if (!OnlyRootWrites(at.get(), info)) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition,
                        "{}: {} is a link that others than root can have made", what, name);
    }
    if (++links > kMaxLinks) return ErrnoStatus(ELOOP, what);
    ASSIGN_OR_RETURN(const std::string target, ReadLink(at.get(), name, what));
    if (!target.empty() && target[0] == '/') at.reset(open("/", kFlags | O_DIRECTORY));
    rest = target + "/" + rest;
  }
  UniqueFd folder(openat(at.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder) return ErrnoStatus(errno, what);
  return folder;
}

}  // namespace lamina
