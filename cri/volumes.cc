#include "cri/volumes.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/file_system.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "base/units.h"

namespace lamina::cri {
namespace {

// Mount points at or below `dir`, deepest first.
absl::StatusOr<std::vector<std::string>> MountsBelow(const std::string& dir) {
  ASSIGN_OR_RETURN(const std::string info, FileSystem::Real().Read("/proc/self/mountinfo", 64 * kMiB));
  std::vector<std::string> points;
  for (size_t start = 0; start < info.size();) {
    const size_t end = std::min(info.find('\n', start), info.size());
    size_t at = start;
    for (int field = 0; field < 4 && at < end; ++field) at = info.find(' ', at) + 1;
    std::string point;
    for (size_t i = at; i < end && info[i] != ' '; ++i) {
      if (info[i] == '\\' && i + 3 < end) {  // \040 and the like
        point.push_back(
            static_cast<char>((info[i + 1] - '0') * 64 + (info[i + 2] - '0') * 8 + (info[i + 3] - '0')));
        i += 3;
      } else {
        point.push_back(info[i]);
      }
    }
    if (point == dir || point.rfind(dir + "/", 0) == 0) points.push_back(std::move(point));
    start = end + 1;
  }
  std::reverse(points.begin(), points.end());
  return points;
}

}  // namespace

absl::Status MakeSharedDir(const std::string& dir) {
  RETURN_IF_ERROR(FileSystem::Real().MakeDirectories(dir, 0700));
  // The share's root is what the guest sees as /run/lamina/shared; its parent directories keep strangers out.
  chmod(dir.c_str(), 0755);
  ASSIGN_OR_RETURN(const std::vector<std::string> mounted, MountsBelow(dir));
  if (!mounted.empty()) return absl::OkStatus();
  if (mount(dir.c_str(), dir.c_str(), nullptr, MS_BIND, nullptr) != 0)
    return ErrnoStatus(errno, "bind " + dir);
  if (mount(nullptr, dir.c_str(), nullptr, MS_SHARED, nullptr) != 0) {
    const absl::Status status = ErrnoStatus(errno, "share " + dir);
    umount2(dir.c_str(), MNT_DETACH);
    return status;
  }
  return absl::OkStatus();
}

absl::Status BindVolume(const std::string& shared_dir, const std::string& name, const std::string& source,
                        bool read_only) {
  const std::string target = shared_dir + "/" + name;
  // One look-up of the source: what was checked is what is bound.
  const UniqueFd fd(open(source.c_str(), O_PATH | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "volume " + source);
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "stat volume " + source);
  if (S_ISDIR(info.st_mode)) {
    if (mkdir(target.c_str(), 0755) != 0 && errno != EEXIST) return ErrnoStatus(errno, "mkdir " + target);
  } else {
    const UniqueFd file(open(target.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
    if (!file) return ErrnoStatus(errno, "create " + target);
  }
  const std::string from = fmt::format("/proc/self/fd/{}", fd.get());
  absl::Status status;
  if (mount(from.c_str(), target.c_str(), nullptr, MS_BIND | MS_REC, nullptr) != 0) {
    status = ErrnoStatus(errno, fmt::format("bind {} to {}", source, target));
  } else if (read_only) {
    ASSIGN_OR_RETURN(const std::vector<std::string> points, MountsBelow(target));
    for (const std::string& point : points) {
      if (mount(nullptr, point.c_str(), nullptr, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV,
                nullptr) != 0) {
        status = ErrnoStatus(errno, "make " + point + " read-only");
      }
    }
  }
  if (!status.ok()) UnbindVolume(shared_dir, name).IgnoreError();
  return status;
}

absl::Status UnbindVolume(const std::string& shared_dir, const std::string& name) {
  const std::string target = shared_dir + "/" + name;
  RETURN_IF_ERROR(UnmountTree(target));
  if (remove(target.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, "remove " + target);
  return absl::OkStatus();
}

absl::Status UnmountTree(const std::string& dir) {
  ASSIGN_OR_RETURN(const std::vector<std::string> points, MountsBelow(dir));
  for (const std::string& point : points) {
    if (umount2(point.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0 && errno != EINVAL && errno != ENOENT) {
      return ErrnoStatus(errno, "unmount " + point);
    }
  }
  return absl::OkStatus();
}

}  // namespace lamina::cri
