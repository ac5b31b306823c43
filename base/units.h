// Quantities as people write them, parsed exactly. Bytes are uint64_t, CPUs are nanoCPU (10^-9 CPU, int64_t).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace lamina {

inline constexpr uint64_t kKiB = 1024, kMiB = 1024 * kKiB, kGiB = 1024 * kMiB, kTiB = 1024 * kGiB;

// "64MiB", "4096", "1.5GiB" (if whole bytes), also Kubernetes' "64Mi", "64M", "1e3". `what` names the value
// in the error. InvalidArgument for signs, empty text, other suffixes, fractions of a byte, more than 2^63-1.
absl::StatusOr<uint64_t> ParseBytes(std::string_view text, std::string_view what);

// "0.5", "250m", "2": nanoCPU, exact to nine decimals. InvalidArgument for signs, more decimals, more than
// 10^6 CPUs.
absl::StatusOr<int64_t> ParseCpus(std::string_view text, std::string_view what);

// The shortest exact form: "64MiB", "1536KiB", "1000B".
std::string FormatBytes(uint64_t bytes);
// "0.75", "2".
std::string FormatCpus(int64_t nano_cpus);

}  // namespace lamina
