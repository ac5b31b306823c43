#include "cri/disk_image.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "base/config.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/trusted_folder.h"
#include "base/units.h"

namespace lamina::cri {
namespace {

constexpr std::chrono::seconds kFormatTimeout{30};
constexpr int kImageFd = 3;  // in mke2fs

struct Place {
  UniqueFd folder;
  std::string name;
};

absl::StatusOr<Place> FindPlace(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos || slash + 1 == path.size())
    return InvalidArgument("disk image {}: not the path of a file", path);
  Place place;
  ASSIGN_OR_RETURN(place.folder, OpenTrustedFolder(path.substr(0, slash + 1)));
  place.name = path.substr(slash + 1);
  return place;
}

absl::StatusOr<UniqueFd> OpenIn(const Place& place, const std::string& path) {
  UniqueFd fd(openat(place.folder.get(), place.name.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat info {};
  if (!fd || fstat(fd.get(), &info) != 0) {
    if (errno == ELOOP || errno == EISDIR)
      return MakeStatus(absl::StatusCode::kFailedPrecondition, "disk image {} is no file", path);
    return ErrnoStatus(errno, "open disk image " + path);
  }
  if (!S_ISREG(info.st_mode))
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "disk image {} is no file", path);
  return fd;
}

absl::StatusOr<uint64_t> SizeThatFits(const Place& place, const std::string& path, uint64_t wanted) {
  struct statvfs disk {};
  if (fstatvfs(place.folder.get(), &disk) != 0) return ErrnoStatus(errno, "look at the disk of " + path);
  const uint64_t free = uint64_t{disk.f_bavail} * disk.f_frsize / kMiB * kMiB;
  if (free >= std::min(wanted, kMinDiskBytes)) return std::min(wanted, free);
  return MakeStatus(absl::StatusCode::kResourceExhausted, "disk image {}: {} are free there, and it needs {}",
                    path, FormatBytes(free), FormatBytes(kMinDiskBytes));
}

// All that the file system is stands here, whatever the node's mke2fs.conf says; a guest of Linux 6.1 knows
// it. No checksums and no inode tables that must be written: the image stays holes until somebody writes.
std::vector<std::string> FormatCommand(bool journal) {
  std::string features =
      "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_nlink,"
      "extra_isize,uninit_bg";
  if (journal) features += ",has_journal";
  std::vector<std::string> argv = {"mke2fs", "-q", "-F", "-t", "ext4", "-O", features};
  if (journal) argv.insert(argv.end(), {"-J", "size=16"});
  argv.insert(argv.end(), {"-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-e", "remount-ro", "-E",
                           "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
                           fmt::format("/proc/self/fd/{}", kImageFd)});
  return argv;
}

absl::Status Format(int fd, bool journal) {
  SpawnOptions options;
  options.argv = FormatCommand(journal);
  options.env = {kProgramPath, "LC_ALL=C", "MKE2FS_CONFIG=/dev/null"};
  options.working_directory = "/";
  options.fds = {{fd, kImageFd}};
  ASSIGN_OR_RETURN(const CommandResult result, RunSpawned(std::move(options), kFormatTimeout));
  return CheckExit("mke2fs", result);
}

}  // namespace

absl::StatusOr<uint64_t> MakeDiskImage(const std::string& path, const DiskImageOptions& options) {
  if (options.bytes < kMinDiskBytes || options.bytes > kMaxDiskBytes) {
    return InvalidArgument("disk image {} of {}: must have from {} to {}", path, FormatBytes(options.bytes),
                           FormatBytes(kMinDiskBytes), FormatBytes(kMaxDiskBytes));
  }
  ASSIGN_OR_RETURN(const Place place, FindPlace(path));
  if (options.keep) {
    const absl::StatusOr<UniqueFd> there = OpenIn(place, path);
    struct stat info {};
    if (there.ok() && fstat(there->get(), &info) == 0) return static_cast<uint64_t>(info.st_size);
    if (!absl::IsNotFound(there.status())) return there.status();
  }
  ASSIGN_OR_RETURN(const uint64_t bytes, SizeThatFits(place, path, options.bytes));
  const int folder = place.folder.get();
  const std::string fresh = place.name + ".new";
  if (unlinkat(folder, fresh.c_str(), 0) != 0 && errno != ENOENT)
    return ErrnoStatus(errno, "remove " + path + ".new");
  const auto make = [&]() -> absl::Status {
    const UniqueFd image(
        openat(folder, fresh.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!image) return ErrnoStatus(errno, "create it");
    if (ftruncate(image.get(), static_cast<off_t>(bytes)) != 0)
      return ErrnoStatus(errno, "give it " + FormatBytes(bytes));
    RETURN_IF_ERROR(Format(image.get(), options.journal));
    if (renameat(folder, fresh.c_str(), folder, place.name.c_str()) != 0)
      return ErrnoStatus(errno, "rename " + fresh);
    return absl::OkStatus();
  };
  if (const absl::Status made = make(); !made.ok()) {
    unlinkat(folder, fresh.c_str(), 0);
    return Annotate(made, "make disk image " + path);
  }
  return bytes;
}

absl::StatusOr<UniqueFd> OpenDiskImage(const std::string& path) {
  ASSIGN_OR_RETURN(const Place place, FindPlace(path));
  return OpenIn(place, path);
}

absl::Status RemoveDiskImage(const std::string& path) {
  const absl::StatusOr<Place> place = FindPlace(path);
  if (absl::IsNotFound(place.status())) return absl::OkStatus();
  RETURN_IF_ERROR(place.status());
  for (const std::string& name : {place->name + ".new", place->name}) {
    if (unlinkat(place->folder.get(), name.c_str(), 0) != 0 && errno != ENOENT)
      return ErrnoStatus(errno, "remove disk image " + path);
  }
  return absl::OkStatus();
}

}  // namespace lamina::cri
