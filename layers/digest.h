#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "layers/patience.h"

namespace lamina::layers {

// sha256 of `bytes` bytes at `offset` of the file, 64 hex digits. DataLoss when the file ends earlier.
absl::StatusOr<std::string> DigestOf(const std::string& path, uint64_t offset, uint64_t bytes,
                                     const Patience& patience = {});

}  // namespace lamina::layers
