#include "guest/agent/own_devices.h"

#include <dirent.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <set>

#include "base/status.h"

namespace lamina::guest {
namespace {

constexpr size_t kMaxDevices = 1024;
constexpr int kMaxDepth = 8;

absl::Status Collect(const std::string& folder, const std::string& shown, dev_t device, int depth,
                     std::vector<OwnDevice>& found) {
  static const std::set<std::string> kContainersOwn = {"pts", "shm", "mqueue", "fd", "console", "ptmx"};
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(folder.c_str()), closedir);
  if (dir == nullptr) return ErrnoStatus(errno, "open " + folder);
  while (const dirent* entry = readdir(dir.get())) {
    const std::string name = entry->d_name;
    if (name == "." || name == ".." || (depth == 0 && kContainersOwn.count(name) != 0)) continue;
    struct stat info {};
    // It may have gone meanwhile.
    if (lstat((folder + "/" + name).c_str(), &info) != 0 || info.st_dev != device) continue;
    const std::string path = shown + "/" + name;
    if (S_ISDIR(info.st_mode) && depth < kMaxDepth)
      RETURN_IF_ERROR(Collect(folder + "/" + name, path, device, depth + 1, found));
    if (!S_ISBLK(info.st_mode) && !S_ISCHR(info.st_mode)) continue;
    if (found.size() >= kMaxDevices) return absl::OkStatus();
    found.push_back({path, S_ISBLK(info.st_mode), major(info.st_rdev), minor(info.st_rdev),
                     info.st_mode & 0777, info.st_uid, info.st_gid});
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<OwnDevice>> OwnDevices(const std::string& dev) {
  struct stat info {};
  if (stat(dev.c_str(), &info) != 0) return ErrnoStatus(errno, "stat " + dev);
  std::vector<OwnDevice> found;
  RETURN_IF_ERROR(Collect(dev, "/dev", info.st_dev, 0, found));
  std::sort(found.begin(), found.end(),
            [](const OwnDevice& a, const OwnDevice& b) { return a.path < b.path; });
  return found;
}

}  // namespace lamina::guest
