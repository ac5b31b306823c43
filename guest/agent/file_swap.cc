#include "guest/agent/file_swap.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "base/beneath.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "guest/protocol/contract.h"

namespace lamina::guest {
namespace {

constexpr size_t kPieceBytes = 16 * 1024;
constexpr int kMaxDepth = 64;
constexpr char kDataLink[] = "..data";

struct Named {
  std::string name;
  struct stat info;
};

absl::StatusOr<UniqueFd> OpenFolder(int folder, const std::string& name) {
  return OpenBeneath(folder, name, O_RDONLY | O_DIRECTORY);
}

absl::StatusOr<std::vector<Named>> List(int folder) {
  ASSIGN_OR_RETURN(std::vector<std::string> names, NamesIn(folder));
  std::vector<Named> entries;
  for (std::string& name : names) {
    Named entry{std::move(name), {}};
    if (fstatat(folder, entry.name.c_str(), &entry.info, AT_SYMLINK_NOFOLLOW) == 0)
      entries.push_back(std::move(entry));
    else if (errno != ENOENT)
      return ErrnoStatus(errno, "stat " + entry.name);
  }
  return entries;
}

std::optional<struct stat> Look(int folder, const std::string& name) {
  struct stat info {};
  if (fstatat(folder, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) return std::nullopt;
  return info;
}

absl::StatusOr<std::string> TargetOf(int folder, const std::string& name) {
  std::string target(kMaxPathBytes + 1, '\0');
  const ssize_t n = readlinkat(folder, name.c_str(), target.data(), target.size());
  if (n < 0) return ErrnoStatus(errno, "read link " + name);
  target.resize(static_cast<size_t>(n));
  return target;
}

// Up to `size` bytes from `offset`; fewer only at the end.
absl::StatusOr<size_t> ReadAt(int file, char* bytes, size_t size, off_t offset, const std::string& name) {
  size_t have = 0;
  while (have < size) {
    const ssize_t n = pread(file, bytes + have, size - have, offset + static_cast<off_t>(have));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "read " + name);
    if (n == 0) break;
    have += static_cast<size_t>(n);
  }
  return have;
}

absl::StatusOr<bool> SameContent(int one, int other, const std::string& name) {
  const auto left = std::make_unique<std::array<char, kPieceBytes>>();
  const auto right = std::make_unique<std::array<char, kPieceBytes>>();
  for (off_t offset = 0;;) {
    ASSIGN_OR_RETURN(const size_t have, ReadAt(one, left->data(), left->size(), offset, name));
    ASSIGN_OR_RETURN(const size_t there, ReadAt(other, right->data(), right->size(), offset, name));
    if (have != there || !std::equal(left->begin(), left->begin() + have, right->begin())) return false;
    if (have == 0) return true;
    offset += static_cast<off_t>(have);
  }
}

// Owner, mode and, of a file, time: only where they differ, so that nobody hears of what did not change.
absl::Status TakeAttributes(int fd, const struct stat& wanted, const std::string& name) {
  struct stat have {};
  if (fstat(fd, &have) != 0) return ErrnoStatus(errno, "stat " + name);
  const bool owner = have.st_uid != wanted.st_uid || have.st_gid != wanted.st_gid;
  if (owner && fchown(fd, wanted.st_uid, wanted.st_gid) != 0) return ErrnoStatus(errno, "chown " + name);
  // A change of owner takes away setuid and setgid.
  if ((owner || (have.st_mode & 07777) != (wanted.st_mode & 07777)) &&
      fchmod(fd, wanted.st_mode & 07777) != 0)
    return ErrnoStatus(errno, "chmod " + name);
  if (!S_ISREG(wanted.st_mode) ||
      (have.st_mtim.tv_sec == wanted.st_mtim.tv_sec && have.st_mtim.tv_nsec == wanted.st_mtim.tv_nsec)) {
    return absl::OkStatus();
  }
  const timespec times[2] = {{0, UTIME_OMIT}, wanted.st_mtim};
  if (futimens(fd, times) != 0) return ErrnoStatus(errno, "set the time of " + name);
  return absl::OkStatus();
}

absl::Status Rename(int from, int to, const std::string& name) {
  if (renameat(from, name.c_str(), to, name.c_str()) != 0) return ErrnoStatus(errno, "rename " + name);
  return absl::OkStatus();
}

// Something of another kind stands in the way: the two change places at once.
absl::Status Exchange(int from, int to, const std::string& name) {
  if (renameat2(from, name.c_str(), to, name.c_str(), RENAME_EXCHANGE) != 0)
    return ErrnoStatus(errno, "exchange " + name);
  return absl::OkStatus();
}

absl::Status SwapFile(int current, int next, const std::string& name) {
  ASSIGN_OR_RETURN(const UniqueFd wanted, OpenBeneath(next, name, O_RDONLY));
  const auto have = OpenBeneath(current, name, O_RDONLY | O_NONBLOCK);
  if (!have.ok()) return Rename(next, current, name);
  ASSIGN_OR_RETURN(const bool same, SameContent(have->get(), wanted.get(), name));
  if (!same) return Rename(next, current, name);
  struct stat info {};
  if (fstat(wanted.get(), &info) != 0) return ErrnoStatus(errno, "stat " + name);
  return TakeAttributes(have->get(), info, name);
}

absl::Status RewriteFile(int current, int next, const std::string& name) {
  ASSIGN_OR_RETURN(const UniqueFd wanted, OpenBeneath(next, name, O_RDONLY));
  ASSIGN_OR_RETURN(const UniqueFd have, OpenBeneath(current, name, O_RDWR | O_NONBLOCK));
  ASSIGN_OR_RETURN(const bool same, SameContent(have.get(), wanted.get(), name));
  struct stat info {};
  if (fstat(wanted.get(), &info) != 0) return ErrnoStatus(errno, "stat " + name);
  if (!same) {
    // Over the old content, and then to its length: a reader never finds the file empty.
    const auto piece = std::make_unique<std::array<char, kPieceBytes>>();
    for (off_t offset = 0; offset < info.st_size;) {
      ASSIGN_OR_RETURN(const size_t size, ReadAt(wanted.get(), piece->data(), piece->size(), offset, name));
      if (size == 0) break;
      for (size_t done = 0; done < size;) {
        const ssize_t n =
            pwrite(have.get(), piece->data() + done, size - done, offset + static_cast<off_t>(done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return ErrnoStatus(errno, "write " + name);
        done += static_cast<size_t>(n);
      }
      offset += static_cast<off_t>(size);
    }
    if (ftruncate(have.get(), info.st_size) != 0) return ErrnoStatus(errno, "truncate " + name);
  }
  return TakeAttributes(have.get(), info, name);
}

// `beside_taken`: "<name>_tmp" is a name of the volume's own.
absl::Status SwapLink(int current, int next, const std::string& name, const struct stat& wanted,
                      bool beside_taken) {
  ASSIGN_OR_RETURN(const std::string target, TargetOf(next, name));
  const std::optional<struct stat> have = Look(current, name);
  if (have && have->st_uid == wanted.st_uid && have->st_gid == wanted.st_gid) {
    ASSIGN_OR_RETURN(const std::string old_target, TargetOf(current, name));
    if (old_target == target) return absl::OkStatus();
  }
  // A new one is made in its place, as on the host; one that changes is made beside it and renamed.
  const std::string made = !have && name != kDataLink ? name : name + "_tmp";
  if (made != name && beside_taken) return Rename(next, current, name);
  if (made != name && unlinkat(current, made.c_str(), 0) != 0 && errno != ENOENT)
    return ErrnoStatus(errno, "remove " + made);
  if (symlinkat(target.c_str(), current, made.c_str()) != 0) return ErrnoStatus(errno, "link " + made);
  const std::optional<struct stat> fresh = Look(current, made);
  if (fresh && (fresh->st_uid != wanted.st_uid || fresh->st_gid != wanted.st_gid) &&
      fchownat(current, made.c_str(), wanted.st_uid, wanted.st_gid, AT_SYMLINK_NOFOLLOW) != 0) {
    return ErrnoStatus(errno, "chown " + made);
  }
  if (made == name) return absl::OkStatus();
  if (renameat(current, made.c_str(), current, name.c_str()) != 0)
    return ErrnoStatus(errno, "rename " + made);
  return absl::OkStatus();
}

bool Holds(const std::vector<Named>& entries, const std::string& name) {
  const auto found =
      std::lower_bound(entries.begin(), entries.end(), name,
                       [](const Named& entry, const std::string& wanted) { return entry.name < wanted; });
  return found != entries.end() && found->name == name;
}

// One volume's change; what is to be removed after the grace is kept until then.
class Swap {
 public:
  explicit Swap(std::chrono::milliseconds grace) : grace_(grace) {}

  absl::Status Folder(int current, int next, bool fresh) {
    ASSIGN_OR_RETURN(const std::vector<Named> wanted, List(next));
    ASSIGN_OR_RETURN(const std::vector<Named> before, List(current));
    for (const Named& entry : wanted) {
      const std::optional<struct stat> have = Look(current, entry.name);
      if (have && (have->st_mode & S_IFMT) != (entry.info.st_mode & S_IFMT)) {
        RETURN_IF_ERROR(Exchange(next, current, entry.name));
      } else if (S_ISDIR(entry.info.st_mode)) {
        RETURN_IF_ERROR(InnerFolder(current, next, entry, !have));
      }
    }
    for (const Named& entry : wanted) {
      if (S_ISREG(entry.info.st_mode) && IsStill(next, entry))
        RETURN_IF_ERROR(SwapFile(current, next, entry.name));
    }
    for (const bool data : {true, false}) {
      for (const Named& entry : wanted) {
        if (S_ISLNK(entry.info.st_mode) && (entry.name == kDataLink) == data && IsStill(next, entry))
          RETURN_IF_ERROR(
              SwapLink(current, next, entry.name, entry.info, Holds(wanted, entry.name + "_tmp")));
      }
    }
    return fresh ? absl::OkStatus() : RemoveStale(current, before, wanted);
  }

 private:
  absl::Status InnerFolder(int current, int next, const Named& entry, bool fresh) {
    if (fresh && mkdirat(current, entry.name.c_str(), 0700) != 0)
      return ErrnoStatus(errno, "mkdir " + entry.name);
    ASSIGN_OR_RETURN(const UniqueFd inner, OpenFolder(current, entry.name));
    ASSIGN_OR_RETURN(const UniqueFd inner_next, OpenFolder(next, entry.name));
    RETURN_IF_ERROR(Folder(inner.get(), inner_next.get(), fresh));
    return TakeAttributes(inner.get(), entry.info, entry.name);
  }

  // What an exchange left there is of another kind.
  static bool IsStill(int next, const Named& entry) {
    const std::optional<struct stat> left = Look(next, entry.name);
    return left && (left->st_mode & S_IFMT) == (entry.info.st_mode & S_IFMT);
  }

  absl::Status RemoveStale(int current, const std::vector<Named>& before, const std::vector<Named>& wanted) {
    absl::Status first;
    for (const bool folders : {false, true}) {
      for (const Named& old : before) {
        if (S_ISDIR(old.info.st_mode) != folders || Holds(wanted, old.name)) continue;
        if (folders && !std::exchange(waited_, true)) std::this_thread::sleep_for(grace_);
        first.Update(RemoveTree(current, old.name));
      }
    }
    return first;
  }

  const std::chrono::milliseconds grace_;
  bool waited_ = false;
};

absl::Status RemoveTreeAt(int folder, const std::string& name, int depth) {
  if (unlinkat(folder, name.c_str(), 0) == 0 || errno == ENOENT) return absl::OkStatus();
  if (errno != EISDIR && errno != EPERM) return ErrnoStatus(errno, "remove " + name);
  if (depth > kMaxDepth) return InvalidArgument("remove {}: deeper than {} folders", name, kMaxDepth);
  {
    ASSIGN_OR_RETURN(const UniqueFd inner, OpenFolder(folder, name));
    ASSIGN_OR_RETURN(const std::vector<std::string> names, NamesIn(inner.get()));
    for (const std::string& each : names) RETURN_IF_ERROR(RemoveTreeAt(inner.get(), each, depth + 1));
  }
  if (unlinkat(folder, name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT)
    return ErrnoStatus(errno, "remove " + name);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<std::string>> NamesIn(int folder) {
  UniqueFd again(openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!again) return ErrnoStatus(errno, "open a folder");
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(fdopendir(again.get()), closedir);
  if (!stream) return ErrnoStatus(errno, "list a folder");
  static_cast<void>(again.release());
  std::vector<std::string> names;
  while (const dirent* entry = readdir(stream.get())) {
    std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status RemoveTree(int folder, const std::string& name) { return RemoveTreeAt(folder, name, 0); }

absl::Status SwapTree(int current, int next, const std::string& name, std::chrono::milliseconds grace) {
  const std::optional<struct stat> wanted = Look(next, name);
  if (!wanted) return ErrnoStatus(ENOENT, "stat " + name);
  const std::optional<struct stat> have = Look(current, name);
  if (!have) return Rename(next, current, name);
  if ((have->st_mode & S_IFMT) != (wanted->st_mode & S_IFMT)) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "the volume is a {} and cannot become a {}",
                      S_ISDIR(have->st_mode) ? "folder" : "file",
                      S_ISDIR(wanted->st_mode) ? "folder" : "file");
  }
  if (!S_ISDIR(wanted->st_mode)) return RewriteFile(current, next, name);
  ASSIGN_OR_RETURN(const UniqueFd folder, OpenFolder(current, name));
  ASSIGN_OR_RETURN(const UniqueFd folder_next, OpenFolder(next, name));
  RETURN_IF_ERROR(Swap(grace).Folder(folder.get(), folder_next.get(), false));
  return TakeAttributes(folder.get(), *wanted, name);
}

}  // namespace lamina::guest
