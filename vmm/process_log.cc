#include "vmm/process_log.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/positioned_io.h"
#include "base/status.h"
#include "base/ttrpc/thread.h"
#include "base/unique_fd.h"

namespace lamina::vmm {
namespace {

// How often logs are looked at: while they grow, and while they don't.
constexpr int kBusyLookMillis = 50, kIdleLookMillis = 2000;
constexpr uint64_t kBusyGrowthBytes = 64 << 10;

}  // namespace

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

void TrimLogsUntil(const std::vector<std::string>& logs, pollfd* ends, nfds_t count) {
  int look = kBusyLookMillis;
  for (uint64_t known = 0; poll(ends, count, look) <= 0;) {
    uint64_t bytes = 0;
    for (const std::string& path : logs) bytes += TrimLog(path).value_or(0);
    look = bytes - known > kBusyGrowthBytes ? kBusyLookMillis : kIdleLookMillis;
    known = bytes;
  }
}

absl::StatusOr<std::unique_ptr<LogKeeper>> LogKeeper::Start(std::vector<std::string> logs) {
  std::unique_ptr<LogKeeper> keeper(new LogKeeper());
  keeper->end_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!keeper->end_) return ErrnoStatus(errno, "eventfd");
  ASSIGN_OR_RETURN(keeper->thread_, ttrpc::NewThread([logs = std::move(logs), end = keeper->end_.get()] {
                     pollfd ended{end, POLLIN, 0};
                     TrimLogsUntil(logs, &ended, 1);
                   }));
  return keeper;
}

LogKeeper::~LogKeeper() {
  if (!thread_.joinable()) return;
  eventfd_write(end_.get(), 1);
  thread_.join();
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
