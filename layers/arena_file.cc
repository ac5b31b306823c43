#include "layers/arena_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "layers/erofs_image.h"

namespace lamina::layers {
namespace {

absl::Status CopyRange(int from, uint64_t from_offset, int to, uint64_t to_offset, uint64_t bytes,
                       const std::string& what) {
  std::vector<char> buffer(1 << 20);
  while (bytes > 0) {
    const ssize_t n =
        pread(from, buffer.data(), std::min<uint64_t>(buffer.size(), bytes), static_cast<off_t>(from_offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "read for " + what);
    if (n == 0)
      return MakeStatus(absl::StatusCode::kDataLoss, "{}: the source ends {} bytes too early", what, bytes);
    for (ssize_t done = 0; done < n;) {
      const ssize_t written = pwrite(to, buffer.data() + done, static_cast<size_t>(n - done),
                                     static_cast<off_t>(to_offset) + done);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return ErrnoStatus(errno, "write for " + what);
      done += written;
    }
    from_offset += static_cast<uint64_t>(n);
    to_offset += static_cast<uint64_t>(n);
    bytes -= static_cast<uint64_t>(n);
  }
  if (fsync(to) != 0) return ErrnoStatus(errno, "fsync for " + what);
  return absl::OkStatus();
}

}  // namespace

absl::Status CreateArenaFile(const std::string& path, uint64_t bytes) {
  UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd) return ErrnoStatus(errno, "create arena " + path);
  if (ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    const absl::Status status = ErrnoStatus(errno, "size arena " + path);
    unlink(path.c_str());
    return status;
  }
  return absl::OkStatus();
}

absl::Status CopyIntoArena(const std::string& path, uint64_t offset, const std::string& from_path,
                           uint64_t from_offset, uint64_t bytes, const std::string& digest) {
  UniqueFd from(open(from_path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!from) return ErrnoStatus(errno, "open " + from_path);
  UniqueFd to(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!to) return ErrnoStatus(errno, "open arena " + path);
  absl::Status status = CopyRange(from.get(), from_offset, to.get(), offset, bytes, "arena " + path);
  if (status.ok()) {
    const absl::StatusOr<std::string> found = DigestOf(path, offset, bytes);
    status = found.status();
    if (status.ok() && *found != digest) {
      status = MakeStatus(absl::StatusCode::kDataLoss, "arena {} at {}: read back {}, wrote {}", path, offset,
                          *found, digest);
    }
  }
  if (!status.ok()) PunchArena(path, offset, bytes).IgnoreError();
  return status;
}

absl::Status CopyFromArena(const std::string& path, uint64_t offset, uint64_t bytes, const std::string& to) {
  UniqueFd from(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!from) return ErrnoStatus(errno, "open arena " + path);
  UniqueFd out(open(to.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!out) return ErrnoStatus(errno, "create " + to);
  const absl::Status status = CopyRange(from.get(), offset, out.get(), 0, bytes, to);
  if (!status.ok()) unlink(to.c_str());
  return status;
}

absl::Status PunchArena(const std::string& path, uint64_t offset, uint64_t bytes) {
  UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "open arena " + path);
  if (fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                static_cast<off_t>(bytes)) != 0) {
    return ErrnoStatus(errno, "punch arena " + path);
  }
  return absl::OkStatus();
}

}  // namespace lamina::layers
