#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/statusor.h"
#include "base/confinement.h"
#include "base/mutex.h"
#include "layers/patience.h"

namespace lamina::layers {

struct Image {
  std::string path;
  std::string digest;  // sha256 of the file, 64 hex digits
  uint64_t bytes = 0;  // multiple of 4096
};

// What one conversion may take, however its layer is made.
struct ConvertLimits {
  std::chrono::seconds time = std::chrono::minutes(10);  // on the clock, and of CPU
  uint64_t memory_bytes = 4ULL << 30;                    // address space
  uint64_t image_bytes = 64ULL << 30;
};

// What mkfs.erofs may do (docs/security.md says why).
ConfinementRules MkfsErofsRules();

// Runs mkfs.erofs, confined: what reads a layer sees that layer, its image and nothing else. Thread-safe.
class ErofsMaker {
 public:
  explicit ErofsMaker(const ConvertLimits& limits) : limits_(limits) {}

  // Makes an EROFS image of a layer directory at `image_path` (both absolute): the same content gives the
  // same bytes. Files keep owner, mode, mtime, xattrs (trusted.* too), hard links, device nodes. Data is not
  // inlined, so that DAX maps it. On error nothing is left at `image_path`, and the message names the
  // directory with mkfs.erofs's own words, escaped and cut. ResourceExhausted: a limit, or the disk is full.
  // `most_bytes`: what the disk has for this image, if that is less than its limit. `stop` requested:
  // mkfs.erofs is killed, Cancelled.
  absl::StatusOr<Image> Make(const std::string& directory, const std::string& image_path,
                             uint64_t most_bytes = UINT64_MAX, const std::stop_token& stop = {});

  // What is missing of the confinement on this node, and why; OK: nothing. NotFound: there is no mkfs.erofs.
  absl::Status confinement();

 private:
  absl::StatusOr<std::shared_ptr<const Confinement>> Prepared();

  const ConvertLimits limits_;
  Mutex mutex_;
  std::shared_ptr<const Confinement> prepared_ GUARDED_BY(mutex_);  // null: not yet
};

// InvalidArgument unless `path` is a regular file that begins like an EROFS image. Gives its digest and size.
absl::StatusOr<Image> ExamineErofsImage(const std::string& path, const Patience& patience = {});

}  // namespace lamina::layers
