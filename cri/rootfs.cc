#include "cri/rootfs.h"

#include <algorithm>
#include <map>
#include <sstream>

#include "base/file_system.h"
#include "base/status.h"

namespace lamina::cri {
namespace {

constexpr std::string_view kLower = "lowerdir=", kDevice = "device=";

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// mountinfo writes space, tab, newline and backslash as three octal digits.
std::string Unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out.push_back(
          static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0')));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

// Mount point -> the EROFS blob that is mounted there whole.
std::map<std::string, std::string> MountedBlobs(const HostMounts& host) {
  std::map<std::string, std::string> blobs;
  std::istringstream lines(host.mountinfo);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string id, parent, device, root, point, word, type, source;
    words >> id >> parent >> device >> root >> point;
    while (words >> word && word != "-") {
    }
    if (!(words >> type >> source)) continue;
    point = Unescape(point);
    blobs.erase(point);  // what is mounted over it hides it
    if (type != "erofs" || root != "/") continue;
    source = Unescape(source);
    // A blob is mounted through a loop device, or by newer kernels as the file that it is.
    std::string file = source.rfind("/dev/", 0) == 0 ? host.loop_file(device) : source;
    if (!file.empty() && file[0] == '/' && !EndsWith(file, " (deleted)")) blobs[point] = std::move(file);
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

}  // namespace lamina::cri
