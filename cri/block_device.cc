#include "cri/block_device.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cerrno>

#include "absl/strings/numbers.h"
#include "base/file_system.h"
#include "base/status.h"

namespace lamina::cri {
namespace {

std::string Sysfs(DeviceNumber number, const char* file) {
  return fmt::format("/sys/dev/block/{}:{}/{}", number.major, number.minor, file);
}

std::string Words(DeviceNumber number) {
  return fmt::format("block device {}:{}", number.major, number.minor);
}

}  // namespace

absl::StatusOr<std::string> BlockDevicePath(DeviceNumber number) {
  const auto variables = FileSystem::Real().Read(Sysfs(number, "uevent"), 8192);
  if (absl::IsNotFound(variables.status()))
    return MakeStatus(absl::StatusCode::kNotFound, "{}: this machine has none", Words(number));
  RETURN_IF_ERROR(variables.status());
  constexpr std::string_view kName = "DEVNAME=";
  for (size_t at = 0; at < variables->size();) {
    const size_t end = std::min(variables->find('\n', at), variables->size());
    const std::string line = variables->substr(at, end - at);
    if (line.starts_with(kName)) return "/dev/" + line.substr(kName.size());
    at = end + 1;
  }
  return MakeStatus(absl::StatusCode::kNotFound, "{}: the kernel has no name for it", Words(number));
}

absl::StatusOr<UniqueFd> OpenBlockDevice(DeviceNumber number, bool writable) {
  ASSIGN_OR_RETURN(const std::string path, BlockDevicePath(number));
  UniqueFd fd(open(path.c_str(), (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK));
  if (!fd && errno == EROFS)
    return MakeStatus(absl::StatusCode::kPermissionDenied, "{} is read-only, and wanted writable", path);
  struct stat info {};
  if (!fd || fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, Words(number) + ": open " + path);
  if (!S_ISBLK(info.st_mode) || info.st_rdev != makedev(number.major, number.minor))
    return MakeStatus(absl::StatusCode::kNotFound, "{}: {} is another", Words(number), path);
  return fd;
}

absl::StatusOr<uint64_t> BlockDeviceBytes(DeviceNumber number) {
  ASSIGN_OR_RETURN(const std::string text, FileSystem::Real().Read(Sysfs(number, "size"), 64));
  uint64_t sectors = 0;
  if (!absl::SimpleAtoi(text, &sectors))
    return MakeStatus(absl::StatusCode::kInternal, "{}: its size is \"{:.32}\"", Words(number), text);
  return sectors * 512;
}

}  // namespace lamina::cri
