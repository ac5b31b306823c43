#include "cri/file_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <tuple>
#include <utility>

#include "base/beneath.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace lamina::cri {
namespace {

using Kind = FileEntry::Kind;

constexpr int kTries = 3;
constexpr char kSwapName[] = "..data_tmp";

// Differs when the thing behind a path has been changed or replaced.
using Stamp = std::tuple<dev_t, ino_t, time_t, long, off_t>;

Stamp StampOf(const struct stat& info) {
  return {info.st_dev, info.st_ino, info.st_ctim.tv_sec, info.st_ctim.tv_nsec, info.st_size};
}

absl::Status Moving(const std::string& path) {
  return MakeStatus(absl::StatusCode::kUnavailable, "{} changes while it is read", path);
}

absl::StatusOr<std::vector<std::string>> NamesIn(int folder, size_t limit, const std::string& path) {
  UniqueFd again(openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!again) return ErrnoStatus(errno, "open " + path);
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(fdopendir(again.get()), closedir);
  if (!stream) return ErrnoStatus(errno, "list " + path);
  static_cast<void>(again.release());
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* const entry = readdir(stream.get());
    if (entry == nullptr && errno != 0) return ErrnoStatus(errno, "list " + path);
    if (entry == nullptr) break;
    std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    if (names.size() >= limit) {
      return MakeStatus(absl::StatusCode::kResourceExhausted, "{} holds more than {} entries", path, limit);
    }
    names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

// One pass over the tree; two that see the same stamps saw one state of it.
class Pass {
 public:
  Pass(const std::string& source, const FileTreeLimits& limits, bool with_content)
      : source_(source), limits_(limits), with_content_(with_content) {}

  absl::Status Run() {
    const UniqueFd root(open(source_.c_str(), O_PATH | O_CLOEXEC));
    if (!root) return ErrnoStatus(errno, "open " + source_);
    struct stat info {};
    if (fstat(root.get(), &info) != 0) return ErrnoStatus(errno, "stat " + source_);
    const std::string itself = "/proc/self/fd/" + std::to_string(root.get());
    if (S_ISDIR(info.st_mode)) {
      const UniqueFd folder(open(itself.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      if (!folder) return ErrnoStatus(errno, "open " + source_);
      return AddFolder(folder.get(), "", 0);
    }
    if (!S_ISREG(info.st_mode)) return OtherKind("");
    const UniqueFd file(open(itself.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    if (!file) return ErrnoStatus(errno, "open " + source_);
    return AddFile(file.get(), "");
  }

  const std::vector<Stamp>& stamps() const { return stamps_; }
  FileTree Take() { return std::move(tree_); }

 private:
  std::string Named(const std::string& path) const { return path.empty() ? source_ : source_ + "/" + path; }
  absl::Status OtherKind(const std::string& path) const {
    return InvalidArgument("{} is neither a folder, a file nor a symbolic link", Named(path));
  }
  absl::Status TooMuch(uint64_t count, const char* what) const {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "{} holds more than {} {}", source_, count, what);
  }

  absl::StatusOr<FileEntry*> Add(const struct stat& info, Kind kind, const std::string& path) {
    if (stamps_.size() >= limits_.entries) return TooMuch(limits_.entries, "entries");
    if (path.size() > guest::kMaxPathBytes) return InvalidArgument("{}: its path is too long", Named(path));
    stamps_.push_back(StampOf(info));
    if (!with_content_) return nullptr;
    FileEntry& entry = tree_.entries.emplace_back();
    entry.path = path;
    entry.kind = kind;
    entry.uid = info.st_uid;
    entry.gid = info.st_gid;
    entry.mode = info.st_mode & 07777;
    entry.modified_unix_nanos = info.st_mtim.tv_sec * 1'000'000'000LL + info.st_mtim.tv_nsec;
    return &entry;
  }

  absl::Status AddFolder(int folder, const std::string& path, size_t depth) {
    if (depth > limits_.depth) return TooMuch(limits_.depth, "folders one in another");
    struct stat info {};
    if (fstat(folder, &info) != 0) return ErrnoStatus(errno, "stat " + Named(path));
    RETURN_IF_ERROR(Add(info, Kind::kFolder, path).status());
    ASSIGN_OR_RETURN(const std::vector<std::string> names, NamesIn(folder, limits_.entries, Named(path)));
    for (const std::string& name : names) {
      if (path.empty() && name == kSwapName) continue;
      RETURN_IF_ERROR(AddNamed(folder, name, path.empty() ? name : path + "/" + name, depth));
    }
    return absl::OkStatus();
  }

  absl::Status AddNamed(int folder, const std::string& name, const std::string& path, size_t depth) {
    struct stat info {};
    if (fstatat(folder, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0)
      return errno == ENOENT ? Moving(Named(path)) : ErrnoStatus(errno, "stat " + Named(path));
    if (S_ISLNK(info.st_mode)) return AddLink(folder, name, path, info);
    if (!S_ISDIR(info.st_mode) && !S_ISREG(info.st_mode)) return OtherKind(path);
    // O_NONBLOCK: for a FIFO that took the file's place.
    const auto opened =
        OpenBeneath(folder, name, O_RDONLY | O_NONBLOCK | (S_ISDIR(info.st_mode) ? O_DIRECTORY : 0));
    if (!opened.ok()) {
      struct stat now {};
      const bool same = fstatat(folder, name.c_str(), &now, AT_SYMLINK_NOFOLLOW) == 0 &&
                        (now.st_mode & S_IFMT) == (info.st_mode & S_IFMT);
      return same ? Annotate(opened.status(), source_) : Moving(Named(path));
    }
    if (S_ISDIR(info.st_mode)) return AddFolder(opened->get(), path, depth + 1);
    return AddFile(opened->get(), path);
  }

  absl::Status AddLink(int folder, const std::string& name, const std::string& path,
                       const struct stat& info) {
    std::string target(guest::kMaxPathBytes + 1, '\0');
    const ssize_t n = readlinkat(folder, name.c_str(), target.data(), target.size());
    if (n < 0)
      return errno == ENOENT || errno == EINVAL ? Moving(Named(path))
                                                : ErrnoStatus(errno, "read link " + Named(path));
    target.resize(static_cast<size_t>(n));
    ASSIGN_OR_RETURN(FileEntry * entry, Add(info, Kind::kLink, path));
    if (entry != nullptr) entry->content = target;
    return absl::OkStatus();
  }

  absl::Status AddFile(int file, const std::string& path) {
    struct stat info {};
    if (fstat(file, &info) != 0) return ErrnoStatus(errno, "stat " + Named(path));
    if (!S_ISREG(info.st_mode)) return Moving(Named(path));
    if (++files_ > limits_.files) return TooMuch(limits_.files, "files");
    ASSIGN_OR_RETURN(FileEntry * entry, Add(info, Kind::kFile, path));
    const uint64_t size = static_cast<uint64_t>(info.st_size);
    if (size > limits_.bytes - tree_.bytes) return TooMuch(limits_.bytes, "bytes");
    if (entry == nullptr) return absl::OkStatus();
    entry->content.resize(size);
    size_t have = 0;
    while (have < size) {
      const ssize_t n = read(file, entry->content.data() + have, size - have);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return ErrnoStatus(errno, "read " + Named(path));
      if (n == 0) return Moving(Named(path));
      have += static_cast<size_t>(n);
    }
    tree_.bytes += size;
    return absl::OkStatus();
  }

  const std::string& source_;
  const FileTreeLimits& limits_;
  const bool with_content_;
  FileTree tree_;
  std::vector<Stamp> stamps_;
  size_t files_ = 0;
};

}  // namespace

absl::StatusOr<FileTree> ReadFileTree(const std::string& source, const FileTreeLimits& limits) {
  absl::Status status;
  for (int tries = 0; tries < kTries; ++tries) {
    Pass reading(source, limits, true);
    status = reading.Run();
    if (absl::IsUnavailable(status)) continue;
    RETURN_IF_ERROR(status);
    Pass looking(source, limits, false);
    status = looking.Run();
    if (status.ok() && looking.stamps() == reading.stamps()) return reading.Take();
    if (status.ok() || absl::IsNotFound(status)) status = Moving(source);
    if (!absl::IsUnavailable(status)) return status;
  }
  return status;
}

absl::StatusOr<uint64_t> FileTreeStamp(const std::string& source) {
  const FileTreeLimits limits;
  Pass looking(source, limits, false);
  RETURN_IF_ERROR(looking.Run());
  uint64_t sum = 0;
  const auto add = [&](auto part) {
    sum = (sum ^ static_cast<uint64_t>(part)) * 0x100000001b3 + 0x9e3779b97f4a7c15;
  };
  for (const Stamp& stamp : looking.stamps()) std::apply([&](auto... parts) { (add(parts), ...); }, stamp);
  return sum;
}

}  // namespace lamina::cri
