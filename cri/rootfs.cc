#include "cri/rootfs.h"

#include <algorithm>
#include <map>

#include "base/file_system.h"
#include "base/proc.h"
#include "base/status.h"

namespace lamina::cri {
namespace {

constexpr std::string_view kLower = "lowerdir=", kUpper = "upperdir=", kDevice = "device=";

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Mount point -> the EROFS blob that is mounted there whole.
std::map<std::string, std::string> MountedBlobs(const HostMounts& host) {
  std::map<std::string, std::string> blobs;
  for (const MountEntry& mount : ParseMountinfo(host.mountinfo)) {
    blobs.erase(mount.point);  // what is mounted over it hides it
    if (mount.type != "erofs" || mount.root != "/") continue;
    // A blob is mounted through a loop device, or by newer kernels as the file that it is.
    std::string file = mount.source.starts_with("/dev/") ? host.loop_file(mount.device) : mount.source;
    if (!file.empty() && file[0] == '/' && !EndsWith(file, " (deleted)"))
      blobs[mount.point] = std::move(file);
  }
  return blobs;
}

}  // namespace

HostMounts ReadHostMounts() {
  HostMounts host;
  host.mountinfo = FileSystem::Real().Read("/proc/self/mountinfo", 16 << 20).value_or("");
  host.loop_file = [](const std::string& device) {
    std::string file =
        FileSystem::Real().Read("/sys/dev/block/" + device + "/loop/backing_file", 8192).value_or("");
    while (!file.empty() && file.back() == '\n') file.pop_back();
    return file;
  };
  return host;
}

absl::StatusOr<std::vector<std::string>> LayerSources(
    const google::protobuf::RepeatedPtrField<containerd::Mount>& rootfs, const HostMounts& host) {
  std::vector<std::string> sources;
  for (const containerd::Mount& mount : rootfs) {
    if (EndsWith(mount.type(), "overlay")) {
      for (const std::string& option : mount.options()) {
        // "lowerdir={{ overlay 0 3 }}" stands for the erofs mounts before it.
        if (option.rfind(kLower, 0) != 0 || option.find("{{") != std::string::npos) continue;
        for (size_t start = kLower.size(); start <= option.size();) {
          const size_t end = std::min(option.find(':', start), option.size());
          if (end > start) sources.push_back(option.substr(start, end - start));
          start = end + 1;
        }
      }
    } else if (mount.type() == "erofs") {
      // A merged image names its layers' blobs, lowest first.
      std::vector<std::string> devices;
      for (const std::string& option : mount.options()) {
        if (option.rfind(kDevice, 0) == 0) devices.push_back(option.substr(kDevice.size()));
      }
      if (devices.empty()) devices.push_back(mount.source());
      sources.insert(sources.end(), devices.rbegin(), devices.rend());
    } else if (mount.type() == "bind") {
      sources.push_back(mount.source());
    } else if (!EndsWith(mount.type(), "ext4")) {  // the writable top of the EROFS snapshotter's block mode
      return InvalidArgument(
          "rootfs mount of type \"{}\" ({}): Lamina takes overlay, bind and erofs; use the overlayfs or the "
          "erofs snapshotter",
          mount.type(), mount.source());
    }
  }
  if (sources.empty())
    return absl::InvalidArgumentError("the container has no image layers: its rootfs mounts are empty");
  const std::map<std::string, std::string> blobs = MountedBlobs(host);
  for (std::string& source : sources) {
    if (const auto blob = blobs.find(source); blob != blobs.end()) source = blob->second;
  }
  return sources;
}

std::string UpperDir(const google::protobuf::RepeatedPtrField<containerd::Mount>& rootfs) {
  std::string folder;
  for (const containerd::Mount& mount : rootfs) {
    const bool read_only =
        std::find(mount.options().begin(), mount.options().end(), "ro") != mount.options().end();
    if (mount.type() == "bind" && !read_only) folder = mount.source();
    if (EndsWith(mount.type(), "ext4")) folder = mount.source().substr(0, mount.source().rfind('/'));
    if (!EndsWith(mount.type(), "overlay")) continue;
    for (const std::string& option : mount.options()) {
      // A template stands for a folder inside the mount before it.
      if (option.starts_with(kUpper) && option.find("{{") == std::string::npos)
        folder = option.substr(kUpper.size());
    }
  }
  return folder;
}

}  // namespace lamina::cri
