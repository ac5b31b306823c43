#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace lamina::layers {

// sha256 of `bytes` bytes at `offset` of the file, 64 hex digits. DataLoss when the file ends earlier.
absl::StatusOr<std::string> DigestOf(const std::string& path, uint64_t offset, uint64_t bytes);

// sha256 of `data`, 64 hex digits.
absl::StatusOr<std::string> Sha256(std::string_view data);

}  // namespace lamina::layers
