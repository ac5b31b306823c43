// Whole reads and writes at an offset, in one call.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace lamina {

// Exactly `bytes` bytes at `offset`. DataLoss when the file ends earlier. Errors name `path`.
absl::Status ReadAt(int fd, const std::string& path, uint64_t offset, char* data, uint64_t bytes);
absl::Status WriteAt(int fd, const std::string& path, uint64_t offset, const char* data, uint64_t bytes);

}  // namespace lamina
