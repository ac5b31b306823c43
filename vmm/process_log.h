// The logs of QEMU and virtiofsd: files that the process appends to by itself, so that it neither blocks nor
// ends when the shim does. What grows too long is freed from its beginning by whoever watches the process.
#pragma once

#include <poll.h>

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace lamina::vmm {

// What a log may hold, and what is kept of one that held more.
inline constexpr uint64_t kLogMaxBytes = 1 << 20, kLogKeptBytes = 512 << 10;

// Frees all but the last kLogKeptBytes of a log that holds more than kLogMaxBytes; what is written meanwhile
// stays. The file keeps its length: what was freed reads as zeros and takes no room. Gives its length; 0 when
// it is not there.
absl::StatusOr<uint64_t> TrimLog(const std::string& path);

// Trims them until one of `ends` is readable, a hang-up or an error; those that are tell so by their revents.
void TrimLogsUntil(const std::vector<std::string>& logs, pollfd* ends, nfds_t count);

// Trims logs from now until it goes: a thread that looks at them every 50 ms while they grow, every 2 s while
// they don't. Its end waits for a look that is under way.
class LogKeeper {
 public:
  // ResourceExhausted when the kernel gives no thread or descriptor.
  static absl::StatusOr<std::unique_ptr<LogKeeper>> Start(std::vector<std::string> logs);
  ~LogKeeper();

 private:
  LogKeeper() = default;
  UniqueFd end_;  // an eventfd
  std::thread thread_;
};

// The last `max_bytes` of a log on one printable line, read from its end. Empty when there is nothing.
std::string LogTail(const std::string& path, size_t max_bytes);

}  // namespace lamina::vmm
