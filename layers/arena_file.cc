#include "layers/arena_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "layers/erofs_image.h"
#include "layers/file_io.h"

namespace lamina::layers {
namespace {

struct OpenFile {
  int fd;
  const std::string& path;
};

absl::Status CopyRange(const OpenFile& from, uint64_t from_offset, const OpenFile& to, uint64_t to_offset,
                       uint64_t bytes) {
  std::vector<char> buffer(1 << 20);
  for (uint64_t done = 0; done < bytes;) {
    const uint64_t part = std::min<uint64_t>(buffer.size(), bytes - done);
    RETURN_IF_ERROR(ReadAt(from.fd, from.path, from_offset + done, buffer.data(), part));
    RETURN_IF_ERROR(WriteAt(to.fd, to.path, to_offset + done, buffer.data(), part));
    done += part;
  }
  if (fsync(to.fd) != 0) return ErrnoStatus(errno, "fsync " + to.path);
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
  absl::Status status = CopyRange({from.get(), from_path}, from_offset, {to.get(), path}, offset, bytes);
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
  const absl::Status status = CopyRange({from.get(), path}, offset, {out.get(), to}, 0, bytes);
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
