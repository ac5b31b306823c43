#include "guest/agent/kept_files.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <utility>

#include "base/beneath.h"
#include "base/log.h"
#include "base/printable.h"
#include "base/safe_id.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "guest/agent/file_swap.h"
#include "guest/agent/system.h"
#include "proto/agent.pb.h"

namespace lamina::guest {
namespace {

using agent::v1::FileEntry;

constexpr char kNext[] = "next";  // beside the volume, on its file system
// Old and new content at once, each file rounded up to a page, as the kernel counts.
constexpr uint64_t kTmpfsBytes = 2 * (kMaxKeptBytes + kMaxKeptFiles * 4096);
constexpr size_t kTmpfsInodes = 2 * kMaxKeptEntries + 16;

absl::StatusOr<UniqueFd> OpenFolder(const std::string& path) {
  UniqueFd folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
  if (!folder) return ErrnoStatus(errno, "open " + path);
  return folder;
}

absl::Status MakeFolder(const std::string& path) {
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return ErrnoStatus(errno, "mkdir " + path);
  return absl::OkStatus();
}

// `path` of an entry where it is prepared.
std::string Prepared(const std::string& path) {
  return std::string(kNext) + "/" + kKeptFilesName + (path.empty() ? "" : "/") + path;
}

absl::Status WriteAll(int file, std::string_view bytes, uint64_t offset, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = pwrite(file, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "write " + path);
    bytes.remove_prefix(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

timespec TimeOf(int64_t nanos) {
  constexpr int64_t kSecond = 1'000'000'000;
  const int64_t seconds = nanos / kSecond - (nanos % kSecond < 0 ? 1 : 0);
  return {static_cast<time_t>(seconds), static_cast<long>(nanos - seconds * kSecond)};
}

}  // namespace

absl::Status CheckFileEntry(const FileEntry& entry) {
  const std::string shown = Printable(entry.path(), 256);
  const auto wrong = [&](std::string_view what) { return InvalidArgument("entry \"{}\": {}", shown, what); };
  if (entry.path().size() > kMaxPathBytes) return wrong("its path is too long");
  if (entry.path().find('\0') != std::string::npos) return wrong("its path has a NUL");
  size_t parts = 0;
  for (std::string_view rest = entry.path(); !entry.path().empty();) {
    const size_t slash = rest.find('/');
    const std::string_view part = rest.substr(0, slash);
    if (part.empty() || part == "." || part == "..")
      return wrong("a part of its path is empty, \".\" or \"..\"");
    if (part.size() > 255) return wrong("a part of its path is over 255 bytes");
    if (++parts > kMaxKeptDepth + 1) return wrong("its path has too many parts");
    if (slash == std::string_view::npos) break;
    rest.remove_prefix(slash + 1);
  }
  if (entry.mode() > 07777) return wrong("its mode is over 07777");
  switch (entry.kind()) {
    case FileEntry::FOLDER:
      if (!entry.content().empty() || entry.offset() != 0) return wrong("a folder has no content");
      return absl::OkStatus();
    case FileEntry::FILE:
      if (entry.offset() > kMaxKeptBytes) return wrong("its offset is over what a volume may hold");
      return absl::OkStatus();
    case FileEntry::LINK:
      if (entry.path().empty()) return wrong("a volume is no link");
      if (entry.offset() != 0) return wrong("a link comes in one piece");
      if (entry.content().empty() || entry.content().size() > kMaxPathBytes ||
          entry.content().find('\0') != std::string::npos)
        return wrong("its link leads nowhere");
      return absl::OkStatus();
    default:
      return wrong("there is no such kind");
  }
}

absl::Status KeptFiles::Begin(const std::string& volume) {
  const std::string path = PathOf(volume);
  if (known_.count(volume) == 0 && known_.size() >= kMaxVolumes) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "{} volumes are all that one sandbox takes",
                      kMaxVolumes);
  }
  if (mkdir(options_.directory.c_str(), 0755) != 0 && errno != EEXIST)
    return ErrnoStatus(errno, "mkdir " + options_.directory);
  RETURN_IF_ERROR(MakeFolder(path));
  if (options_.mount && !IsMountPoint(path)) {
    const std::string limits = fmt::format("size={},nr_inodes={},mode=0700", kTmpfsBytes, kTmpfsInodes);
    if (mount("tmpfs", path.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, limits.c_str()) != 0) {
      const absl::Status status = ErrnoStatus(errno, "mount a tmpfs on " + path);
      rmdir(path.c_str());
      return status;
    }
  }
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenFolder(path));
  RETURN_IF_ERROR(RemoveTree(folder.get(), kNext));
  if (mkdirat(folder.get(), kNext, 0700) != 0) return ErrnoStatus(errno, "mkdir " + path + "/" + kNext);
  known_.emplace(volume, 0);
  staged_[volume] = {};
  return absl::OkStatus();
}

absl::Status KeptFiles::Stage(int volume, const FileEntry& entry, Staged& staged) {
  RETURN_IF_ERROR(CheckFileEntry(entry));
  const std::string path = Prepared(entry.path()), shown = Printable(entry.path(), 256);
  if (staged.entries == 0 && !entry.path().empty())
    return InvalidArgument("entry \"{}\" comes before the volume itself", shown);
  const size_t slash = path.rfind('/');
  const std::string name = path.substr(slash + 1);
  ASSIGN_OR_RETURN(const UniqueFd parent, OpenBeneath(volume, path.substr(0, slash), O_RDONLY | O_DIRECTORY));
  staged.bytes += entry.content().size();
  const bool more = entry.kind() == FileEntry::FILE && entry.offset() > 0;
  if (!more) {
    ++staged.entries;
    staged.files += entry.kind() == FileEntry::FILE ? 1 : 0;
  }
  if (staged.bytes > kMaxKeptBytes || staged.files > kMaxKeptFiles || staged.entries > kMaxKeptEntries) {
    return MakeStatus(absl::StatusCode::kResourceExhausted,
                      "more than {} bytes, {} files or {} entries in one volume", kMaxKeptBytes,
                      kMaxKeptFiles, kMaxKeptEntries);
  }
  if (entry.kind() == FileEntry::LINK) {
    if (symlinkat(entry.content().c_str(), parent.get(), name.c_str()) != 0)
      return ErrnoStatus(errno, "link " + shown);
    if (fchownat(parent.get(), name.c_str(), entry.uid(), entry.gid(), AT_SYMLINK_NOFOLLOW) != 0)
      return ErrnoStatus(errno, "chown " + shown);
    return absl::OkStatus();
  }
  UniqueFd made;
  if (entry.kind() == FileEntry::FOLDER) {
    if (mkdirat(parent.get(), name.c_str(), 0700) != 0) return ErrnoStatus(errno, "mkdir " + shown);
    ASSIGN_OR_RETURN(made, OpenBeneath(parent.get(), name, O_RDONLY | O_DIRECTORY));
  } else {
    made.reset(openat(parent.get(), name.c_str(),
                      O_RDWR | O_CLOEXEC | O_NOFOLLOW | (more ? 0 : O_CREAT | O_EXCL), 0600));
    if (!made) return ErrnoStatus(errno, "create " + shown);
    struct stat info {};
    if (fstat(made.get(), &info) != 0) return ErrnoStatus(errno, "stat " + shown);
    if (static_cast<uint64_t>(info.st_size) != entry.offset())
      return InvalidArgument("entry \"{}\": offset {} after {} bytes", shown, entry.offset(), info.st_size);
    RETURN_IF_ERROR(WriteAll(made.get(), entry.content(), entry.offset(), shown));
  }
  if (fchown(made.get(), entry.uid(), entry.gid()) != 0) return ErrnoStatus(errno, "chown " + shown);
  if (fchmod(made.get(), entry.mode()) != 0) return ErrnoStatus(errno, "chmod " + shown);
  if (entry.kind() == FileEntry::FOLDER) return absl::OkStatus();
  const timespec times[2] = {{0, UTIME_OMIT}, TimeOf(entry.modified_unix_nanos())};
  if (futimens(made.get(), times) != 0) return ErrnoStatus(errno, "set the time of " + shown);
  return absl::OkStatus();
}

absl::Status KeptFiles::RoomFor(const std::string& volume, uint64_t bytes) const {
  for (const auto& [name, held] : known_) bytes += name == volume ? 0 : held;
  if (bytes <= kMaxKeptTotalBytes) return absl::OkStatus();
  return MakeStatus(absl::StatusCode::kResourceExhausted,
                    "all volumes together would hold {} bytes, at most {}", bytes, kMaxKeptTotalBytes);
}

absl::Status KeptFiles::PutLocked(const agent::v1::PutFilesRequest& request) {
  if (request.first()) RETURN_IF_ERROR(Begin(request.volume()));
  const auto found = staged_.find(request.volume());
  if (found == staged_.end())
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "its files have to be sent from the first on");
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenFolder(PathOf(request.volume())));
  for (const FileEntry& entry : request.entries()) RETURN_IF_ERROR(Stage(folder.get(), entry, found->second));
  RETURN_IF_ERROR(RoomFor(request.volume(), found->second.bytes));
  if (!request.last()) return absl::OkStatus();
  if (found->second.entries == 0) return InvalidArgument("nothing was sent of it");
  ASSIGN_OR_RETURN(const UniqueFd next, OpenBeneath(folder.get(), kNext, O_RDONLY | O_DIRECTORY));
  RETURN_IF_ERROR(SwapTree(folder.get(), next.get(), kKeptFilesName, options_.grace));
  known_[request.volume()] = found->second.bytes;
  staged_.erase(found);
  RemoveTree(folder.get(), kNext).IgnoreError();  // else the next Put does
  return absl::OkStatus();
}

absl::Status KeptFiles::Put(const agent::v1::PutFilesRequest& request) {
  RETURN_IF_ERROR(CheckSafeId(request.volume(), "volume"));
  MutexLock lock(mutex_);
  const absl::Status status = PutLocked(request);
  if (status.ok()) return status;
  staged_.erase(request.volume());
  const auto folder = OpenFolder(PathOf(request.volume()));
  if (folder.ok()) {
    RemoveTree(folder->get(), kNext).IgnoreError();
    // Of one that never was there nothing stays.
    if (faccessat(folder->get(), kKeptFilesName, F_OK, AT_SYMLINK_NOFOLLOW) != 0)
      RemoveLocked(request.volume()).IgnoreError();
  }
  return Annotate(status, "volume " + request.volume());
}

absl::StatusOr<agent::v1::ReadFileResponse> KeptFiles::Read(const std::string& volume) {
  RETURN_IF_ERROR(CheckSafeId(volume, "volume"));
  MutexLock lock(mutex_);
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenFolder(PathOf(volume)));
  const auto file = OpenBeneath(folder.get(), kKeptFilesName, O_RDONLY | O_NONBLOCK);
  if (!file.ok()) return Annotate(file.status(), "volume " + volume);
  struct stat info {};
  if (fstat(file->get(), &info) != 0) return ErrnoStatus(errno, "stat volume " + volume);
  if (!S_ISREG(info.st_mode))
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "volume {} is not a file", volume);
  agent::v1::ReadFileResponse response;
  const uint64_t size = static_cast<uint64_t>(info.st_size);
  const uint64_t from = size - std::min<uint64_t>(size, kMaxReadFileBytes);
  std::string& content = *response.mutable_content();
  content.resize(size - from);
  size_t have = 0;
  while (have < content.size()) {
    const ssize_t n =
        pread(file->get(), content.data() + have, content.size() - have, static_cast<off_t>(from + have));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "read volume " + volume);
    if (n == 0) break;  // somebody made it shorter
    have += static_cast<size_t>(n);
  }
  content.resize(have);
  response.set_size(size);
  return response;
}

absl::Status KeptFiles::RemoveLocked(const std::string& volume) {
  if (known_.count(volume) == 0) return absl::OkStatus();
  staged_.erase(volume);
  const std::string path = PathOf(volume);
  if (options_.mount) {
    if (umount2(path.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH) != 0 && errno != EINVAL && errno != ENOENT)
      return ErrnoStatus(errno, "unmount " + path);
  } else if (const auto parent = OpenFolder(options_.directory); parent.ok()) {
    RETURN_IF_ERROR(RemoveTree(parent->get(), volume));
  }
  if (rmdir(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, "remove " + path);
  known_.erase(volume);
  return absl::OkStatus();
}

absl::Status KeptFiles::Remove(const std::string& volume) {
  RETURN_IF_ERROR(CheckSafeId(volume, "volume"));
  MutexLock lock(mutex_);
  return RemoveLocked(volume);
}

void KeptFiles::RemoveAll() {
  MutexLock lock(mutex_);
  const std::map<std::string, uint64_t> volumes = known_;
  for (const auto& [volume, bytes] : volumes) {
    if (const absl::Status status = RemoveLocked(volume); !status.ok()) LogWarning("{}", Message(status));
  }
}

}  // namespace lamina::guest
