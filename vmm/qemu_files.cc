#include "vmm/qemu_files.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "base/status.h"

namespace lamina::vmm {
namespace {

using nlohmann::json;

constexpr std::chrono::seconds kCommandTimeout{20};

absl::StatusOr<UniqueFd> OpenFile(const std::string& path, const std::string& what, struct stat& info) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd || fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, what);
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{} is not a file", what);
  return fd;
}

}  // namespace

absl::StatusOr<OpenedDisk> OpenDisk(const DiskFile& disk) {
  const std::string what = "disk image " + disk.path;
  OpenedDisk opened;
  if (disk.open) {
    ASSIGN_OR_RETURN(opened.fd, disk.open());
  } else {
    opened.fd =
        UniqueFd(open(disk.path.c_str(), (disk.writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK));
    if (!opened.fd && errno == ENOENT) return absl::InternalError(Message(ErrnoStatus(ENOENT, what)));
    if (!opened.fd) return ErrnoStatus(errno, what);
  }
  struct stat info {};
  if (fstat(opened.fd.get(), &info) != 0) return ErrnoStatus(errno, what);
  opened.block_device = S_ISBLK(info.st_mode);
  if (!opened.block_device && !S_ISREG(info.st_mode))
    return InvalidArgument("{} is neither a file nor a block device", what);
  int logical = 0;
  unsigned physical = 0;
  if (opened.block_device && ioctl(opened.fd.get(), BLKSSZGET, &logical) == 0 && logical >= 512)
    opened.logical_block_bytes = opened.physical_block_bytes = static_cast<uint32_t>(logical);
  if (opened.block_device && ioctl(opened.fd.get(), BLKPBSZGET, &physical) == 0)
    opened.physical_block_bytes = std::max(opened.physical_block_bytes, physical);
  return opened;
}

absl::StatusOr<UniqueFd> OpenArena(const ArenaDevice& arena) {
  const auto allowed = [](unsigned char c) { return isalnum(c) || c == '-' || c == '_' || c == '.'; };
  if (arena.id.empty() || arena.id.size() > 64 || !std::all_of(arena.id.begin(), arena.id.end(), allowed)) {
    return InvalidArgument("arena id \"{:.80}\": 1 to 64 of A-Z a-z 0-9 - _ . are allowed", arena.id);
  }
  struct stat info {};
  ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(arena.path, "arena " + arena.path, info));
  if (arena.bytes == 0 || static_cast<uint64_t>(info.st_size) < arena.bytes)
    return InvalidArgument("arena {} is not a file of {} bytes or more", arena.path, arena.bytes);
  if ((info.st_mode & S_IROTH) == 0 && fchmod(fd.get(), 0644) != 0)
    return ErrnoStatus(errno, "let QEMU's user read arena " + arena.path);
  return fd;
}

absl::StatusOr<HandedFile> HandFile(QmpClient& qmp, int fd) {
  ASSIGN_OR_RETURN(const std::string text, qmp.Execute("add-fd", "", kCommandTimeout, fd));
  const json answer = json::parse(text, nullptr, false);
  HandedFile file;
  for (const auto& [key, value] : {std::pair{"fdset-id", &file.set}, std::pair{"fd", &file.number}}) {
    if (!answer.is_object() || !answer.contains(key) || !answer[key].is_number_unsigned())
      return MakeStatus(absl::StatusCode::kInternal, "QEMU's answer to add-fd has no {}: {:.100}", key, text);
    *value = answer[key].get<uint64_t>();
  }
  return file;
}

absl::Status TakeFileBack(QmpClient& qmp, const HandedFile& file) {
  return qmp.Execute("remove-fd", fmt::format(R"({{"fdset-id":{}}})", file.set), kCommandTimeout).status();
}

}  // namespace lamina::vmm
