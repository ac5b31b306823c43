// The logs of QEMU and virtiofsd: files that the process appends to by itself, so that it neither blocks nor
// ends when the shim does. What grows too long is freed from its beginning by whoever watches the process.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace lamina::vmm {

// What a log may hold, and what is kept of one that held more.
inline constexpr uint64_t kLogMaxBytes = 1 << 20, kLogKeptBytes = 512 << 10;

// Frees all but the last kLogKeptBytes of a log that holds more than kLogMaxBytes; what is written meanwhile
// stays. The file keeps its length: what was freed reads as zeros and takes no room. Gives its length; 0 when
// it is not there.
absl::StatusOr<uint64_t> TrimLog(const std::string& path);

// The last `max_bytes` of a log on one printable line, read from its end. Empty when there is nothing.
std::string LogTail(const std::string& path, size_t max_bytes);

}  // namespace lamina::vmm
