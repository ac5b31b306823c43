#include <boost/intrusive/set.hpp>
#include <iterator>
#include <unordered_map>
#include <utility>

#include "base/status.h"
#include "base/units.h"
#include "layers/pool_allocator.h"

namespace lamina::layers {
namespace {

constexpr uint64_t kGranule = 4 * kKiB;
constexpr uint64_t kHuge = 2 * kMiB;
constexpr int kTries = 32;

uint64_t RoundUp(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

namespace intrusive = boost::intrusive;

// A free extent, in three orders; it moves in them without being allocated anew.
struct Extent {
  uint64_t start = 0, size = 0;
  using Hook = intrusive::set_member_hook<intrusive::optimize_size<true>>;
  Hook by_size, by_offset, by_aligned_size;

  uint64_t end() const { return start + size; }
  // What is left from its first multiple of 2 MiB on.
  uint64_t aligned_size() const {
    const uint64_t skipped = RoundUp(start, kHuge) - start;
    return size > skipped ? size - skipped : 0;
  }
};
struct StartOf {
  using type = uint64_t;
  type operator()(const Extent& extent) const { return extent.start; }
};
using SizeAndStart = std::pair<uint64_t, uint64_t>;
struct SizeOf {
  using type = SizeAndStart;
  type operator()(const Extent& extent) const { return {extent.size, extent.start}; }
};
struct AlignedSizeOf {
  using type = SizeAndStart;
  type operator()(const Extent& extent) const { return {extent.aligned_size(), extent.start}; }
};
template <Extent::Hook Extent::*kHook, typename Key>
using Order =
    intrusive::set<Extent, intrusive::member_hook<Extent, Extent::Hook, kHook>, intrusive::key_of_value<Key>>;

class DenseAllocator : public PoolAllocator {
 public:
  explicit DenseAllocator(uint64_t capacity) : capacity_(capacity) { AddFree(0, capacity); }
  ~DenseAllocator() override {
    by_size_.clear();
    by_aligned_size_.clear();
    by_offset_.clear_and_dispose([](Extent* extent) { delete extent; });
  }

  absl::StatusOr<Region> Allocate(uint64_t bytes) override {
    if (bytes == 0 || bytes > capacity_) {
      return InvalidArgument("a region of {} bytes: invalid size (1 byte to {})", bytes,
                             FormatBytes(capacity_));
    }
    const uint64_t held = RoundUp(bytes, kGranule);
    if (held > largest()) return NotEnoughSpace();
    // Best fit: the smallest extent that holds the size once its start is aligned; among equals the lowest.
    // Where the first few are all misaligned, the smallest by what is left once aligned: nearly as tight, and
    // found without walking on.
    const bool huge = held >= kHuge;
    auto found = by_size_.lower_bound({held, 0});
    int tries = kTries;
    while (huge && found != by_size_.end() && found->aligned_size() < held) {
      if (--tries > 0) {
        ++found;
        continue;
      }
      const auto aligned = by_aligned_size_.lower_bound({held, 0});
      found = aligned == by_aligned_size_.end() ? by_size_.end() : by_size_.iterator_to(*aligned);
    }
    if (found == by_size_.end()) return NotEnoughSpace();
    const uint64_t offset = huge ? RoundUp(found->start, kHuge) : found->start;
    Carve(*found, offset, held);
    return Take(offset, held, bytes, next_generation_++);
  }

  absl::Status Release(const Handle& handle) override {
    const auto it = live_.find(handle.offset);
    if (it == live_.end() || it->second.generation != handle.generation) {
      return MakeStatus(absl::StatusCode::kNotFound, "region at {} (generation {}): not allocated",
                        handle.offset, handle.generation);
    }
    const uint64_t start = handle.offset, held = it->second.held;
    held_ -= held;
    payload_ -= it->second.payload;
    live_.erase(it);
    const auto after = by_offset_.lower_bound(start);
    const bool joins_after = after != by_offset_.end() && after->start == start + held;
    const auto before = after == by_offset_.begin() ? by_offset_.end() : std::prev(after);
    const bool joins_before = before != by_offset_.end() && before->end() == start;
    if (joins_before && joins_after) {
      const uint64_t end = after->end();
      RemoveFree(*after);
      Change(*before, before->start, end - before->start);
    } else if (joins_before) {
      Change(*before, before->start, before->size + held);
    } else if (joins_after) {
      Change(*after, start, after->size + held);
    } else {
      AddFree(start, held);
    }
    return absl::OkStatus();
  }

  absl::Status Restore(const Region& region) override {
    const uint64_t held = region.held_bytes;
    auto it = by_offset_.upper_bound(region.offset);
    const bool fits = held != 0 && held % kGranule == 0 && region.offset % kGranule == 0 &&
                      region.payload_bytes <= held && region.handle.offset == region.offset &&
                      it != by_offset_.begin() && (--it)->end() >= region.offset + held &&
                      region.offset + held > region.offset;
    if (!fits) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition,
                        "restore: [{}, +{}) is taken or no region of this arena", region.offset, held);
    }
    Carve(*it, region.offset, held);
    Take(region.offset, held, region.payload_bytes, region.handle.generation);
    next_generation_ = std::max(next_generation_, region.handle.generation + 1);
    return absl::OkStatus();
  }

  PoolStats stats() const override { return {capacity_, held_, payload_, live_.size(), largest()}; }
  bool pristine() const override {
    return live_.empty() && by_size_.size() == 1 && by_size_.begin()->size == capacity_;
  }

 private:
  uint64_t largest() const { return by_size_.empty() ? 0 : by_size_.rbegin()->size; }
  struct Live {
    uint64_t held, payload, generation;
  };

  void Sort(Extent& extent) {
    by_size_.insert(extent);
    if (extent.aligned_size() >= kHuge) by_aligned_size_.insert(extent);
  }
  void Unsort(Extent& extent) {
    by_size_.erase(by_size_.iterator_to(extent));
    if (extent.by_aligned_size.is_linked()) by_aligned_size_.erase(by_aligned_size_.iterator_to(extent));
  }
  void AddFree(uint64_t start, uint64_t size) {
    auto* extent = new Extent;
    extent->start = start;
    extent->size = size;
    by_offset_.insert(*extent);
    Sort(*extent);
  }
  void RemoveFree(Extent& extent) {
    Unsort(extent);
    by_offset_.erase(by_offset_.iterator_to(extent));
    delete &extent;
  }
  // Its neighbours stay its neighbours.
  void Change(Extent& extent, uint64_t start, uint64_t size) {
    Unsort(extent);
    extent.start = start;
    extent.size = size;
    Sort(extent);
  }
  // Takes [offset, offset + held) out of the extent.
  void Carve(Extent& extent, uint64_t offset, uint64_t held) {
    const uint64_t after = offset + held, rest = extent.end() - after;
    if (offset > extent.start) {
      Change(extent, extent.start, offset - extent.start);
      if (rest > 0) AddFree(after, rest);
    } else if (rest > 0) {
      Change(extent, after, rest);
    } else {
      RemoveFree(extent);
    }
  }
  Region Take(uint64_t offset, uint64_t held, uint64_t payload, uint64_t generation) {
    live_[offset] = {held, payload, generation};
    held_ += held;
    payload_ += payload;
    return {{offset, generation}, offset, held, payload};
  }

  const uint64_t capacity_;
  Order<&Extent::by_offset, StartOf> by_offset_;  // owns the free extents
  Order<&Extent::by_size, SizeOf> by_size_;
  Order<&Extent::by_aligned_size, AlignedSizeOf> by_aligned_size_;  // of those that hold an aligned 2 MiB
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
