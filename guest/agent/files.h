// Small kernel files (sysfs, procfs, cgroupfs) and the checks of names that become paths.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::guest {

// The file's content without trailing newlines, at most 1 MiB. Errors name the path.
absl::StatusOr<std::string> ReadKernelFile(const std::string& path);
// One write(2) to an existing file.
absl::Status WriteKernelFile(const std::string& path, std::string_view value);
// A new or truncated regular file with `mode`.
absl::Status WriteRegularFile(const std::string& path, std::string_view data, int mode);

// A decimal number that fills the text; "max" gives 2^64-1. InvalidArgument otherwise.
absl::StatusOr<uint64_t> ParseCount(std::string_view text);
// "name value" lines ("memory.stat", "memory.events"); lines of another form are skipped.
std::map<std::string, uint64_t> ParseFlatKeyed(std::string_view text);

// Layer ids: 64 lower-case hex digits.
absl::Status CheckLayerId(std::string_view id);

// "4-6,9" -> {4,5,6,9}; as in /sys/devices/system/cpu/online. InvalidArgument on other text or above 4095.
absl::StatusOr<std::vector<uint32_t>> ParseCpuList(std::string_view text);

}  // namespace lamina::guest
