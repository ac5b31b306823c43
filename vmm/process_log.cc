#include "vmm/process_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/positioned_io.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace lamina::vmm {

absl::StatusOr<uint64_t> TrimLog(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd) return errno == ENOENT ? absl::StatusOr<uint64_t>(0) : ErrnoStatus(errno, "open log " + path);
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, "stat log " + path);
  const auto length = static_cast<uint64_t>(info.st_size);
  if (static_cast<uint64_t>(info.st_blocks) * 512 <= kLogMaxBytes || length <= kLogKeptBytes) return length;
  // Whole pages: the rest of one would only be zeroed.
  const uint64_t freed = (length - kLogKeptBytes) / 4096 * 4096;
  if (fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(freed)) != 0)
    return ErrnoStatus(errno, "free the beginning of log " + path);
  return length;
}

std::string LogTail(const std::string& path, size_t max_bytes) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  struct stat info {};
  if (!fd || fstat(fd.get(), &info) != 0) return "";
  const auto length = static_cast<size_t>(info.st_size);
  std::string tail(std::min(length, max_bytes), '\0');
  if (!ReadAt(fd.get(), path, length - tail.size(), tail.data(), tail.size()).ok()) return "";
  while (!tail.empty() && tail.back() == '\n') tail.pop_back();
  std::string line;
  for (const char c : tail) {
    if (c == '\n') {
      line += ' ';
    } else if (c >= 0x20 && c < 0x7f) {
      line += c;
    } else {
      line += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
  return line;
}

}  // namespace lamina::vmm
