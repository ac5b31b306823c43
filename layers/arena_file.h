// The files behind arenas: sparse, preallocated for nothing, 0600.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "layers/patience.h"

namespace lamina::layers {

struct ArenaRange {
  std::string path;
  uint64_t offset = 0, bytes = 0;
};

// What is copied into an arena: an open file, from `offset` on. `path` is its name in errors.
struct CopySource {
  int fd = -1;
  std::string path;
  uint64_t offset = 0;
};

// The seam to the kernel; every call may take as long as the disk does. Thread-safe.
class ArenaFiles {
 public:
  virtual ~ArenaFiles() = default;

  // A sparse file. AlreadyExists is an error. On error nothing is left.
  virtual absl::Status Create(const std::string& path, uint64_t bytes) = 0;
  // Copies as many bytes as `to` has, fsyncs, and reads back their digest: DataLoss when it is not `digest`.
  // What an error leaves in the range is the caller's to punch.
  virtual absl::Status CopyIn(const CopySource& from, const ArenaRange& to, const std::string& digest,
                              const Patience& patience) = 0;
  // Copies a region to a file of its own (an image for another domain), which is removed on error.
  virtual absl::Status CopyOut(const ArenaRange& from, const std::string& to, const Patience& patience) = 0;
  // Gives the range's blocks back to the file system.
  virtual absl::Status Punch(const ArenaRange& range) = 0;

  static ArenaFiles& Real();
};

// For reading. Errors name `path`.
absl::StatusOr<UniqueFd> OpenToRead(const std::string& path);

}  // namespace lamina::layers
