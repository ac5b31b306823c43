#include "cri/volume_kind.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>

#include "base/status.h"

namespace lamina::cri {
namespace {

constexpr std::string_view kPods = "/pods/", kPlugin = "kubernetes.io~";
constexpr std::array<std::string_view, 4> kFilePlugins = {"configmap", "secret", "projected", "downward-api"};

// Takes the first part off `path`, with the slash behind it.
std::string_view TakePart(std::string_view& path) {
  const size_t slash = path.find('/');
  const std::string_view part = path.substr(0, slash);
  path = slash == std::string_view::npos ? std::string_view() : path.substr(slash + 1);
  return part;
}

bool IsOneOf(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool IsFilePlugin(std::string_view plugin) {
  return std::find(kFilePlugins.begin(), kFilePlugins.end(), plugin) != kFilePlugins.end();
}

// …/sandboxes/<id>/<name>, containerd's folder of a pod; empty: it is none.
std::string_view PodFileOfContainerd(std::string_view path) {
  const size_t name = path.rfind('/');
  if (name == std::string_view::npos || name == 0) return {};
  const size_t id = path.rfind('/', name - 1);
  if (id == std::string_view::npos || id + 1 == name) return {};
  constexpr std::string_view kParent = "/sandboxes";
  return path.substr(0, id).ends_with(kParent) ? path.substr(name + 1) : std::string_view();
}

bool IsTmpfs(const std::vector<MountEntry>& mounts, const std::string& folder) {
  const auto last = std::find_if(mounts.rbegin(), mounts.rend(),
                                 [&](const MountEntry& mount) { return mount.point == folder; });
  return last != mounts.rend() && last->type == "tmpfs";
}

std::string RealPath(const std::string& path) {
  char real[PATH_MAX];
  return realpath(path.c_str(), real) == nullptr ? std::string() : real;
}

// The volume's folder that a subPath is of, and the folder in it.
std::optional<VolumeSource> BehindSubPath(const KubeletPath& path, const std::string& source,
                                          const std::vector<MountEntry>& mounts) {
  VolumeSource found;
  found.path = fmt::format("{}/volumes/{}empty-dir/{}", path.pod_dir, kPlugin, path.name);
  const std::string folder = RealPath(found.path);
  if (folder.empty()) return std::nullopt;
  const auto volume = PlaceOf(mounts, folder), inner = PlaceOf(mounts, RealPath(source));
  if (!volume || !inner || volume->device != inner->device) return std::nullopt;
  const std::string prefix = volume->path == "/" ? "/" : volume->path + "/";
  if (inner->path != volume->path && !inner->path.starts_with(prefix)) return std::nullopt;
  if (inner->path != volume->path) found.sub = inner->path.substr(prefix.size());
  found.kind = IsTmpfs(mounts, folder) ? VolumeKind::kMemory : VolumeKind::kDisk;
  return found;
}

}  // namespace

const char* VolumeKindName(VolumeKind kind) {
  constexpr std::array kNames = {"the pod's shared memory",
                                 "a memory volume of the guest's",
                                 "a disk of the VM's",
                                 "files kept in the guest",
                                 "a termination log kept in the guest",
                                 "a socket of the host, connection by connection",
                                 "shared by virtiofs"};
  return kNames[static_cast<size_t>(kind)];
}

std::optional<Place> PlaceOf(const std::vector<MountEntry>& mounts, std::string_view path) {
  const MountEntry* best = nullptr;
  for (const MountEntry& mount : mounts) {
    const bool has = mount.point == "/" || path == mount.point ||
                     (path.starts_with(mount.point) && path[mount.point.size()] == '/');
    // Of several at one point the last one is seen.
    if (has && (best == nullptr || mount.point.size() >= best->point.size())) best = &mount;
  }
  if (best == nullptr || path.empty()) return std::nullopt;
  std::string rest(path.substr(best->point == "/" ? 0 : best->point.size()));
  if (rest == "/") rest.clear();
  if (best->root == "/") return Place{best->device, rest.empty() ? "/" : rest};
  return Place{best->device, best->root + rest};
}

std::optional<KubeletPath> ParseKubeletPath(std::string_view path) {
  using What = KubeletPath::What;
  for (size_t at = path.find(kPods); at != std::string_view::npos; at = path.find(kPods, at + 1)) {
    std::string_view rest = path.substr(at + kPods.size());
    KubeletPath found;
    const std::string_view uid = TakePart(rest);
    found.pod_dir = path.substr(0, at + kPods.size() + uid.size());
    const std::string_view what = TakePart(rest);
    if (uid.empty()) continue;
    if (what == "etc-hosts" && rest.empty()) {
      found.what = What::kHosts;
      return found;
    }
    if (what == "volumes" && rest.starts_with(kPlugin)) {
      found.plugin = TakePart(rest).substr(kPlugin.size());
      found.name = TakePart(rest);
      found.rest = rest;
      if (!found.name.empty()) return found;
    } else if (what == "volume-subpaths") {
      found.what = What::kSubPath;
      found.name = TakePart(rest);
      const std::string_view container = TakePart(rest);
      if (!found.name.empty() && !container.empty() && !rest.empty()) return found;
    } else if (what == "containers") {
      found.what = What::kTerminationLog;
      const std::string_view container = TakePart(rest);
      if (!container.empty() && !rest.empty() && rest.find('/') == std::string_view::npos) return found;
    }
  }
  return std::nullopt;
}

absl::StatusOr<VolumeSource> SortVolume(const std::string& source, const std::vector<MountEntry>& mounts) {
  struct stat info {};
  if (stat(source.c_str(), &info) != 0) return ErrnoStatus(errno, "volume " + source);
  VolumeSource sorted;
  sorted.path = source;
  if (S_ISSOCK(info.st_mode)) {
    sorted.kind = VolumeKind::kSocket;
    return sorted;
  }
  const std::string_view pod_file = PodFileOfContainerd(source);
  if (source == "/dev/shm" || (pod_file == "shm" && S_ISDIR(info.st_mode))) {
    sorted.kind = VolumeKind::kPodShm;
    return sorted;
  }
  if (IsOneOf(pod_file, {"hostname", "hosts", "resolv.conf"}) && S_ISREG(info.st_mode)) {
    sorted.kind = VolumeKind::kFiles;
    return sorted;
  }
  const auto path = ParseKubeletPath(source);
  // The kubelet's paths are clean; what is not is somebody else's.
  if (!path || source.find("/../") != std::string::npos || source.ends_with("/..")) return sorted;
  switch (path->what) {
    case KubeletPath::What::kHosts:
      if (S_ISREG(info.st_mode)) sorted.kind = VolumeKind::kFiles;
      return sorted;
    case KubeletPath::What::kTerminationLog:
      if (S_ISREG(info.st_mode)) sorted.kind = VolumeKind::kTerminationLog;
      return sorted;
    case KubeletPath::What::kSubPath:
      for (const std::string_view plugin : kFilePlugins) {
        const std::string folder =
            fmt::format("{}/volumes/{}{}/{}", path->pod_dir, kPlugin, plugin, path->name);
        struct stat volume {};
        if (stat(folder.c_str(), &volume) == 0 && volume.st_dev == info.st_dev)
          sorted.kind = VolumeKind::kFiles;
      }
      return BehindSubPath(*path, source, mounts).value_or(sorted);
    case KubeletPath::What::kVolume:
      if (IsFilePlugin(path->plugin)) sorted.kind = VolumeKind::kFiles;
      if (path->plugin != "empty-dir") return sorted;
      sorted.path = source.substr(0, source.size() - (path->rest.empty() ? 0 : path->rest.size() + 1));
      while (sorted.path.ends_with('/')) sorted.path.pop_back();
      sorted.sub = path->rest;
      sorted.kind = IsTmpfs(mounts, RealPath(sorted.path)) ? VolumeKind::kMemory : VolumeKind::kDisk;
      return sorted;
  }
  return sorted;
}

}  // namespace lamina::cri
