#include "tests/e2e/kit/kubelet_cgroup.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>

#include "base/status.h"

namespace lamina::e2e {
namespace {

namespace fs = std::filesystem;
constexpr char kRoot[] = "/sys/fs/cgroup";

std::string ReadLine(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

}  // namespace

std::vector<std::string> CgroupHierarchies() {
  if (fs::exists(std::string(kRoot) + "/cgroup.controllers")) return {kRoot};
  std::vector<std::string> hierarchies;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(kRoot, error)) {
    if (entry.is_directory() && !entry.is_symlink()) hierarchies.push_back(entry.path());
  }
  std::sort(hierarchies.begin(), hierarchies.end());
  return hierarchies;
}

absl::Status MakeCgroup(const std::string& path) {
  for (const std::string& hierarchy : CgroupHierarchies()) {
    std::string folder = hierarchy;
    for (size_t at = 1; at <= path.size();) {
      const size_t slash = std::min(path.find('/', at), path.size());
      const std::string parent = folder;
      folder += "/" + path.substr(at, slash - at);
      at = slash + 1;
      if (mkdir(folder.c_str(), 0755) != 0) {
        if (errno == EEXIST) continue;
        return ErrnoStatus(errno, "make cgroup " + folder);
      }
      for (const char* file : {"/cpuset.cpus", "/cpuset.mems"}) {
        if (!fs::exists(hierarchy + "/cgroup.controllers") && fs::exists(folder + file))
          std::ofstream(folder + file) << ReadLine(parent + file);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status RemoveCgroup(const std::string& path) {
  for (const std::string& hierarchy : CgroupHierarchies()) {
    if (rmdir((hierarchy + path).c_str()) == 0 || errno == ENOENT) continue;
    std::string below;
    for (const std::string& found : FindCgroups(path)) below += " " + found;
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "cgroup {}{} is still in use:{}", hierarchy,
                      path, below);
  }
  return absl::OkStatus();
}

std::vector<std::string> FindCgroups(const std::string& path) {
  std::vector<std::string> found;
  for (const std::string& hierarchy : CgroupHierarchies()) {
    std::error_code error;
    if (!fs::exists(hierarchy + path, error)) continue;
    found.push_back(hierarchy + path);
    for (auto it = fs::recursive_directory_iterator(hierarchy + path, error);
         !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
      if (it->is_directory(error)) found.push_back(it->path());
    }
  }
  return found;
}

}  // namespace lamina::e2e
