#include "base/positioned_io.h"

#include <unistd.h>

#include <cerrno>

#include "base/status.h"

namespace lamina {

absl::Status ReadAt(int fd, const std::string& path, uint64_t offset, char* data, uint64_t bytes) {
  while (bytes > 0) {
    const ssize_t n = pread(fd, data, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "read " + path);
    if (n == 0) return MakeStatus(absl::StatusCode::kDataLoss, "{}: ends {} bytes too early", path, bytes);
    data += n;
    offset += static_cast<uint64_t>(n);
    bytes -= static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

absl::Status WriteAt(int fd, const std::string& path, uint64_t offset, const char* data, uint64_t bytes) {
  while (bytes > 0) {
    const ssize_t n = pwrite(fd, data, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "write " + path);
    data += n;
    offset += static_cast<uint64_t>(n);
    bytes -= static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

}  // namespace lamina
