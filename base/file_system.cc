#include "base/file_system.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <system_error>

#include "base/status.h"
#include "base/unique_fd.h"

namespace lamina {
namespace {

absl::Status WriteAll(int fd, std::string_view data, const std::string& path) {
  while (!data.empty()) {
    const ssize_t n = write(fd, data.data(), data.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "write " + path);
    }
    data.remove_prefix(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

class RealFileSystem : public FileSystem {
 public:
  absl::Status WriteAndSync(const std::string& path, std::string_view data, int mode) override {
    UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode));
    if (!fd) return ErrnoStatus(errno, "create " + path);
    RETURN_IF_ERROR(WriteAll(fd.get(), data, path));
    if (fsync(fd.get()) != 0) return ErrnoStatus(errno, "fsync " + path);
    return absl::OkStatus();
  }

  absl::Status AppendAndSync(const std::string& path, std::string_view data) override {
    UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd) return ErrnoStatus(errno, "open " + path);
    RETURN_IF_ERROR(WriteAll(fd.get(), data, path));
    if (fdatasync(fd.get()) != 0) return ErrnoStatus(errno, "fdatasync " + path);
    return absl::OkStatus();
  }

  absl::Status Rename(const std::string& from, const std::string& to) override {
    if (rename(from.c_str(), to.c_str()) != 0) return ErrnoStatus(errno, "rename " + from + " to " + to);
    return absl::OkStatus();
  }

  absl::Status SyncDirectory(const std::string& path) override {
    UniqueFd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd) return ErrnoStatus(errno, "open directory " + path);
    if (fsync(fd.get()) != 0) return ErrnoStatus(errno, "fsync directory " + path);
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Read(const std::string& path, size_t limit_bytes) override {
    UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) return ErrnoStatus(errno, "open " + path);
    std::string data;
    char buffer[16384];
    for (;;) {
      const ssize_t n = read(fd.get(), buffer, sizeof buffer);
      if (n < 0) {
        if (errno == EINTR) continue;
        return ErrnoStatus(errno, "read " + path);
      }
      if (n == 0) return data;
      if (data.size() + static_cast<size_t>(n) > limit_bytes) {
        return MakeStatus(absl::StatusCode::kResourceExhausted, "read {}: longer than {} bytes", path,
                          limit_bytes);
      }
      data.append(buffer, static_cast<size_t>(n));
    }
  }

  absl::Status Remove(const std::string& path) override {
    if (remove(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, "remove " + path);
    return absl::OkStatus();
  }

  absl::Status RemoveTree(const std::string& path) override {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    if (error && error != std::errc::no_such_file_or_directory)
      return ErrnoStatus(error.value(), "remove " + path);
    return absl::OkStatus();
  }

  absl::Status MakeDirectories(const std::string& path, int mode) override {
    for (size_t end = 1; end != std::string::npos;) {
      end = path.find('/', end + 1);
      const std::string part = path.substr(0, end);
      if (mkdir(part.c_str(), mode) != 0 && errno != EEXIST) return ErrnoStatus(errno, "mkdir " + part);
    }
    struct stat info {};
    if (stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "stat " + path);
    if (!S_ISDIR(info.st_mode)) return ErrnoStatus(ENOTDIR, "mkdir " + path);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override {
    std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(path.c_str()), closedir);
    if (dir == nullptr) return ErrnoStatus(errno, "open directory " + path);
    std::vector<std::string> names;
    while (const dirent* entry = readdir(dir.get())) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  bool Exists(const std::string& path) override { return access(path.c_str(), F_OK) == 0; }
};

}  // namespace

FileSystem& FileSystem::Real() {
  static RealFileSystem fs;
  return fs;
}

absl::Status WriteFileAtomically(FileSystem& fs, const std::string& path, std::string_view data, int mode) {
  const std::string temp = path + ".tmp";
  const size_t slash = path.rfind('/');
  const std::string dir = slash == std::string::npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
  // Kept for the one failure that comes after the rename.
  absl::StatusOr<std::string> old = absl::NotFoundError(path);
  if (fs.Exists(path)) {
    old = fs.Read(path, SIZE_MAX);
    if (!old.ok()) return old.status();
  }
  absl::Status status = fs.WriteAndSync(temp, data, mode);
  if (status.ok()) status = fs.Rename(temp, path);
  if (!status.ok()) {
    fs.Remove(temp).IgnoreError();
    return status;
  }
  status = fs.SyncDirectory(dir);
  if (status.ok()) return status;
  absl::Status undone = old.ok() ? fs.WriteAndSync(temp, *old, mode) : fs.Remove(path);
  if (old.ok() && undone.ok()) undone = fs.Rename(temp, path);
  return undone.ok() ? status : Annotate(status, "and the old content could not be put back");
}

absl::Status FaultyFileSystem::WriteAndSync(const std::string& path, std::string_view data, int mode) {
  RETURN_IF_ERROR(Next());
  return real_.WriteAndSync(path, data, mode);
}
absl::Status FaultyFileSystem::AppendAndSync(const std::string& path, std::string_view data) {
  RETURN_IF_ERROR(Next());
  return real_.AppendAndSync(path, data);
}
absl::Status FaultyFileSystem::Rename(const std::string& from, const std::string& to) {
  RETURN_IF_ERROR(Next());
  return real_.Rename(from, to);
}
absl::Status FaultyFileSystem::SyncDirectory(const std::string& path) {
  RETURN_IF_ERROR(Next());
  return real_.SyncDirectory(path);
}
absl::StatusOr<std::string> FaultyFileSystem::Read(const std::string& path, size_t limit_bytes) {
  return real_.Read(path, limit_bytes);
}
absl::Status FaultyFileSystem::Remove(const std::string& path) {
  RETURN_IF_ERROR(Next());
  return real_.Remove(path);
}
absl::Status FaultyFileSystem::RemoveTree(const std::string& path) {
  RETURN_IF_ERROR(Next());
  return real_.RemoveTree(path);
}
absl::Status FaultyFileSystem::MakeDirectories(const std::string& path, int mode) {
  RETURN_IF_ERROR(Next());
  return real_.MakeDirectories(path, mode);
}
absl::StatusOr<std::vector<std::string>> FaultyFileSystem::List(const std::string& path) {
  return real_.List(path);
}
bool FaultyFileSystem::Exists(const std::string& path) { return real_.Exists(path); }

}  // namespace lamina
