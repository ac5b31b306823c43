// Regions in one arena. Two policies serve the same interface; docs/layers.md compares them.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::layers {

// Names one allocation for ever: after its release, or when its offset is given again, the handle is stale.
struct Handle {
  uint64_t offset = 0;
  uint64_t generation = 0;
  friend bool operator==(const Handle&, const Handle&) = default;
};

struct Region {
  Handle handle;
  uint64_t offset = 0;         // bytes from the arena's start
  uint64_t held_bytes = 0;     // what the region takes
  uint64_t payload_bytes = 0;  // what was asked for
};

struct PoolStats {
  uint64_t capacity_bytes = 0, held_bytes = 0, payload_bytes = 0;
  size_t live = 0;
  uint64_t largest_free_bytes = 0;  // one region of this size fits (its alignment apart)
};

// ResourceExhausted, made once and without the size: a caller asks many arenas, and is refused by most of
// them.
inline const absl::Status& NotEnoughSpace() {
  static const absl::Status status = absl::ResourceExhaustedError("not enough space");
  return status;
}

// Not thread-safe.
class PoolAllocator {
 public:
  virtual ~PoolAllocator() = default;
  // InvalidArgument: 0, or more than a region can ever be (classic: 4 GiB; dense: the arena).
  // ResourceExhausted: no room now.
  virtual absl::StatusOr<Region> Allocate(uint64_t bytes) = 0;
  // NotFound ("not allocated") for a stale or foreign handle; nothing changes then.
  virtual absl::Status Release(const Handle& handle) = 0;
  // Takes back a region that was given before a restart. FailedPrecondition when it overlaps another or
  // cannot be one.
  virtual absl::Status Restore(const Region& region) = 0;
  virtual PoolStats stats() const = 0;
  // True when all is free and merged into one.
  virtual bool pristine() const = 0;
};

// Seven classes of 1 MiB·4^k; the smallest that holds the size, its lowest free offset, split by four, merged
// eagerly. `capacity_bytes` is one of the classes. O(log n).
absl::StatusOr<std::unique_ptr<PoolAllocator>> MakeClassicAllocator(uint64_t capacity_bytes);

// Best-fit extents of 4 KiB granules; sizes from 2 MiB start at a multiple of 2 MiB, so that DAX can map huge
// pages. O(log n). `capacity_bytes`: multiple of 2 MiB.
absl::StatusOr<std::unique_ptr<PoolAllocator>> MakeDenseAllocator(uint64_t capacity_bytes);

enum class Policy { kClassic, kDense };

// "classic" or "dense"; anything else is InvalidArgument.
absl::StatusOr<Policy> ParsePolicy(std::string_view name);
const char* NameOf(Policy policy);

absl::StatusOr<std::unique_ptr<PoolAllocator>> MakeAllocator(Policy policy, uint64_t capacity_bytes);

}  // namespace lamina::layers
