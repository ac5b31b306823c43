// The files behind arenas: sparse, preallocated for nothing, 0600.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace lamina::layers {

// Creates a sparse file of `bytes`. AlreadyExists is an error.
absl::Status CreateArenaFile(const std::string& path, uint64_t bytes);
// Copies `bytes` at `from_offset` of the file `from` (an image, or another arena) to `offset`, fsyncs, and
// reads back their digest: DataLoss when it is not `digest`. On error the range is punched out again.
absl::Status CopyIntoArena(const std::string& path, uint64_t offset, const std::string& from,
                           uint64_t from_offset, uint64_t bytes, const std::string& digest);
// Copies a region to a file of its own (an image for another domain).
absl::Status CopyFromArena(const std::string& path, uint64_t offset, uint64_t bytes, const std::string& to);
// Gives the range's blocks back to the file system.
absl::Status PunchArena(const std::string& path, uint64_t offset, uint64_t bytes);

}  // namespace lamina::layers
