#include "guest/agent/mount_points.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <deque>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/status.h"
#include "base/unique_fd.h"
#include "guest/agent/in_volume.h"

namespace lamina::guest {
namespace {

using Json = nlohmann::json;

constexpr int kMaxLinks = 255;

void PushFront(std::string_view path, std::deque<std::string>& parts) {
  std::vector<std::string> split;
  while (!path.empty()) {
    const size_t slash = path.find('/');
    if (slash != 0) split.emplace_back(path.substr(0, slash));
    path = slash == std::string_view::npos ? std::string_view() : path.substr(slash + 1);
  }
  parts.insert(parts.begin(), split.begin(), split.end());
}

std::optional<std::string> LinkTarget(const std::string& path) {
  char target[PATH_MAX];
  const ssize_t length = readlink(path.c_str(), target, sizeof target);
  if (length <= 0) return std::nullopt;
  return std::string(target, static_cast<size_t>(length));
}

// A source inside a volume, taken apart: the volume, and the path in it.
struct InVolume {
  std::string volume, inner;
};
std::optional<InVolume> FindVolume(const std::string& source, const std::vector<std::string>& directories) {
  for (const std::string& directory : directories) {
    if (!source.starts_with(directory + "/")) continue;
    const size_t end = source.find('/', directory.size() + 1);
    if (end == std::string::npos) return std::nullopt;
    return InVolume{source.substr(0, end), source.substr(end + 1)};
  }
  return std::nullopt;
}

absl::Status Pin(const InVolume& source, const std::string& target) {
  ASSIGN_OR_RETURN(const UniqueFd found, OpenInVolume(source.volume, source.inner, OtherMounts::kEntered));
  struct stat info {};
  if (fstat(found.get(), &info) != 0) return ErrnoStatus(errno, "stat " + source.inner);
  if (S_ISDIR(info.st_mode)) {
    if (mkdir(target.c_str(), 0700) != 0) return ErrnoStatus(errno, "mkdir " + target);
  } else if (const UniqueFd file(open(target.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
             !file) {
    return ErrnoStatus(errno, "create " + target);
  }
  const UniqueFd tree(
      open_tree(found.get(), "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
  if (!tree || move_mount(tree.get(), "", AT_FDCWD, target.c_str(), MOVE_MOUNT_F_EMPTY_PATH) != 0)
    return ErrnoStatus(errno, fmt::format("mount {}/{}", source.volume, source.inner));
  return absl::OkStatus();
}

bool IsBind(const Json& mount) {
  if (mount.value("type", Json()) == "bind") return true;
  const auto options = mount.find("options");
  if (options == mount.end() || !options->is_array()) return false;
  return std::any_of(options->begin(), options->end(),
                     [](const Json& option) { return option == "bind" || option == "rbind"; });
}

}  // namespace

absl::StatusOr<std::string> ResolveDestination(const std::string& rootfs, std::string_view destination,
                                               const std::vector<std::string>& mounted) {
  if (destination.empty() || destination[0] != '/')
    return InvalidArgument("mount destination \"{}\": want an absolute path", destination.substr(0, 160));
  std::deque<std::string> left;
  PushFront(destination, left);
  std::vector<std::string> done;
  int links = 0;
  const auto path = [&] {
    std::string text;
    for (const std::string& part : done) text += "/" + part;
    return text;
  };
  while (!left.empty()) {
    const std::string part = left.front();
    left.pop_front();
    if (part == ".") continue;
    if (part == "..") {
      if (!done.empty()) done.pop_back();
      continue;
    }
    done.push_back(part);
    const std::string here = path();
    if (std::find(mounted.begin(), mounted.end(), here) != mounted.end()) break;
    const auto target = LinkTarget(rootfs + here);
    if (!target) continue;
    if (++links > kMaxLinks)
      return InvalidArgument("mount destination {}: more than {} links", destination.substr(0, 160),
                             kMaxLinks);
    done.pop_back();
    if ((*target)[0] == '/') done.clear();
    PushFront(*target, left);
  }
  std::string resolved = path();
  for (const std::string& part : left) resolved += "/" + part;
  return resolved.empty() ? "/" : resolved;
}

absl::StatusOr<std::string> PlaceMounts(std::string_view config_json, const MountPlaces& places) {
  Json spec = Json::parse(config_json, nullptr, /*allow_exceptions=*/false);
  const auto mounts = spec.is_object() ? spec.find("mounts") : spec.end();
  if (!spec.is_object() || mounts == spec.end() || !mounts->is_array())
    return InvalidArgument("spec.mounts: not an array");
  std::vector<std::string> mounted;
  size_t number = 0;
  for (Json& mount : *mounts) {
    if (!mount.is_object() || !mount.contains("destination") || !mount["destination"].is_string())
      return InvalidArgument("spec.mounts[{}]: it has no destination", number);
    ASSIGN_OR_RETURN(
        std::string destination,
        ResolveDestination(places.rootfs, mount["destination"].get_ref<const std::string&>(), mounted));
    const auto source = mount.find("source");
    if (IsBind(mount) && source != mount.end() && source->is_string()) {
      if (const auto inner = FindVolume(source->get_ref<const std::string&>(), places.volume_directories)) {
        if (mkdir(places.pins.c_str(), 0700) != 0 && errno != EEXIST)
          return ErrnoStatus(errno, "mkdir " + places.pins);
        const std::string pin = fmt::format("{}/{}", places.pins, number);
        RETURN_IF_ERROR(Annotate(Pin(*inner, pin), "mount at " + destination));
        *source = pin;
      }
    }
    mounted.push_back(destination);
    mount["destination"] = std::move(destination);
    ++number;
  }
  return spec.dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::Status RemovePins(const std::string& pins) {
  DIR* dir = opendir(pins.c_str());
  if (dir == nullptr) return errno == ENOENT ? absl::OkStatus() : ErrnoStatus(errno, "open " + pins);
  absl::Status status;
  while (const dirent* entry = readdir(dir)) {
    const std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    const std::string pin = pins + "/" + name;
    if (umount2(pin.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH) != 0 && errno != EINVAL)
      status.Update(ErrnoStatus(errno, "unmount " + pin));
    if (remove(pin.c_str()) != 0) status.Update(ErrnoStatus(errno, "remove " + pin));
  }
  closedir(dir);
  if (status.ok() && rmdir(pins.c_str()) != 0) status = ErrnoStatus(errno, "remove " + pins);
  return status;
}

}  // namespace lamina::guest
