#include <map>
#include <set>
#include <unordered_map>

#include "base/status.h"
#include "base/units.h"
#include "layers/pool_allocator.h"

namespace lamina::layers {
namespace {

constexpr uint64_t kGranule = 4 * kKiB;
constexpr uint64_t kHuge = 2 * kMiB;
constexpr int kTries = 32;

uint64_t RoundUp(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

class DenseAllocator : public PoolAllocator {
 public:
  explicit DenseAllocator(uint64_t capacity) : capacity_(capacity) { AddFree(0, capacity); }

  absl::StatusOr<Region> Allocate(uint64_t bytes) override {
    if (bytes == 0 || bytes > capacity_) {
      return InvalidArgument("a region of {} bytes: invalid size (1 byte to {})", bytes,
                             FormatBytes(capacity_));
    }
    const uint64_t held = RoundUp(bytes, kGranule);
    // Best fit: the smallest extent that holds the size once its start is aligned; among equals the lowest.
    // Where the first few are all misaligned, the smallest by what is left once aligned: nearly as tight, and
    // found without walking on.
    const bool huge = held >= kHuge;
    auto found = by_size_.lower_bound({held, 0});
    int tries = kTries;
    while (huge && found != by_size_.end() && AlignedSize(found->second, found->first) < held) {
      if (--tries > 0) {
        ++found;
        continue;
      }
      const auto aligned = by_aligned_size_.lower_bound({held, 0});
      found = aligned == by_aligned_size_.end()
                  ? by_size_.end()
                  : by_size_.find({by_offset_.at(aligned->second), aligned->second});
    }
    if (found == by_size_.end()) {
      return MakeStatus(absl::StatusCode::kResourceExhausted, "a region of {} bytes: not enough space",
                        bytes);
    }
    const auto [size, start] = *found;
    const uint64_t end = start + size;
    const uint64_t offset = huge ? RoundUp(start, kHuge) : start;
    if (offset == start && end > offset + held) {
      ShortenFree(found, held);
    } else {
      RemoveFree(start, size);
      if (offset > start) AddFree(start, offset - start);
      if (end > offset + held) AddFree(offset + held, end - offset - held);
    }
    return Take(offset, held, bytes, next_generation_++);
  }

  absl::Status Release(const Handle& handle) override {
    const auto it = live_.find(handle.offset);
    if (it == live_.end() || it->second.generation != handle.generation) {
      return MakeStatus(absl::StatusCode::kNotFound, "region at {} (generation {}): not allocated",
                        handle.offset, handle.generation);
    }
    uint64_t start = handle.offset, size = it->second.held;
    held_ -= size;
    payload_ -= it->second.payload;
    live_.erase(it);
    const auto after = by_offset_.lower_bound(start);
    if (after != by_offset_.end() && after->first == start + size) {
      const uint64_t next = after->first, next_size = after->second;
      RemoveFree(next, next_size);
      size += next_size;
    }
    auto before = by_offset_.lower_bound(start);
    if (before != by_offset_.begin()) {
      --before;
      const uint64_t previous = before->first, previous_size = before->second;
      if (previous + previous_size == start) {
        RemoveFree(previous, previous_size);
        start = previous;
        size += previous_size;
      }
    }
    AddFree(start, size);
    return absl::OkStatus();
  }

  absl::Status Restore(const Region& region) override {
    const uint64_t held = region.held_bytes;
    auto it = by_offset_.upper_bound(region.offset);
    const bool fits = held != 0 && held % kGranule == 0 && region.offset % kGranule == 0 &&
                      region.payload_bytes <= held && region.handle.offset == region.offset &&
                      it != by_offset_.begin() && ((--it)->first + it->second) >= region.offset + held &&
                      region.offset + held > region.offset;
    if (!fits) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition,
                        "restore: [{}, +{}) is taken or no region of this arena", region.offset, held);
    }
    const uint64_t start = it->first, size = it->second;
    RemoveFree(start, size);
    if (region.offset > start) AddFree(start, region.offset - start);
    if (start + size > region.offset + held)
      AddFree(region.offset + held, start + size - region.offset - held);
    Take(region.offset, held, region.payload_bytes, region.handle.generation);
    next_generation_ = std::max(next_generation_, region.handle.generation + 1);
    return absl::OkStatus();
  }

  PoolStats stats() const override {
    return {capacity_, held_, payload_, live_.size(), by_size_.empty() ? 0 : by_size_.rbegin()->first};
  }
  bool pristine() const override {
    return live_.empty() && by_size_.size() == 1 && by_size_.begin()->first == capacity_;
  }

 private:
  using Extent = std::pair<uint64_t, uint64_t>;
  struct Live {
    uint64_t held, payload, generation;
  };

  // What is left of a free extent from its first multiple of 2 MiB on.
  static uint64_t AlignedSize(uint64_t start, uint64_t size) {
    const uint64_t skipped = RoundUp(start, kHuge) - start;
    return size > skipped ? size - skipped : 0;
  }
  void AddFree(uint64_t start, uint64_t size) {
    by_size_.insert({size, start});
    if (const uint64_t aligned = AlignedSize(start, size); aligned >= kHuge)
      by_aligned_size_.insert({aligned, start});
    by_offset_[start] = size;
  }
  void RemoveFree(uint64_t start, uint64_t size) {
    by_size_.erase({size, start});
    if (const uint64_t aligned = AlignedSize(start, size); aligned >= kHuge)
      by_aligned_size_.erase({aligned, start});
    by_offset_.erase(start);
  }
  // The extent begins `by` bytes later: its nodes are used again.
  void ShortenFree(std::set<Extent>::iterator extent, uint64_t by) {
    const auto [size, start] = *extent;
    auto by_size = by_size_.extract(extent);
    by_size.value() = {size - by, start + by};
    by_size_.insert(std::move(by_size));
    if (const uint64_t aligned = AlignedSize(start, size); aligned >= kHuge)
      by_aligned_size_.erase({aligned, start});
    if (const uint64_t aligned = AlignedSize(start + by, size - by); aligned >= kHuge)
      by_aligned_size_.insert({aligned, start + by});
    const auto at = by_offset_.find(start);
    const auto next = std::next(at);
    auto by_offset = by_offset_.extract(at);
    by_offset.key() = start + by;
    by_offset.mapped() = size - by;
    by_offset_.insert(next, std::move(by_offset));
  }
  Region Take(uint64_t offset, uint64_t held, uint64_t payload, uint64_t generation) {
    live_[offset] = {held, payload, generation};
    held_ += held;
    payload_ += payload;
    return {{offset, generation}, offset, held, payload};
  }

  const uint64_t capacity_;
  std::set<Extent> by_size_;                // {size, start} of free extents
  std::set<Extent> by_aligned_size_;        // {AlignedSize, start} of those that hold an aligned 2 MiB
  std::map<uint64_t, uint64_t> by_offset_;  // start -> size of free extents
  std::unordered_map<uint64_t, Live> live_;
  uint64_t next_generation_ = 1, held_ = 0, payload_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PoolAllocator>> MakeDenseAllocator(uint64_t capacity_bytes) {
  if (capacity_bytes == 0 || capacity_bytes % kHuge != 0) {
    return InvalidArgument("a dense arena's size must be a multiple of 2MiB, not {}",
                           FormatBytes(capacity_bytes));
  }
  return std::make_unique<DenseAllocator>(capacity_bytes);
}

}  // namespace lamina::layers
