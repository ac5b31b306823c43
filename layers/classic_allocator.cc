#include <array>
#include <set>
#include <unordered_map>

#include "base/status.h"
#include "base/units.h"
#include "layers/pool_allocator.h"

namespace lamina::layers {
namespace {

constexpr int kClasses = 7;
constexpr uint64_t ClassBytes(int k) { return kMiB << (2 * k); }

class ClassicAllocator : public PoolAllocator {
 public:
  explicit ClassicAllocator(int root) : root_(root) { free_[root_].insert(0); }

  absl::StatusOr<Region> Allocate(uint64_t bytes) override {
    const int wanted = ClassOf(bytes);
    if (wanted < 0) {
      return InvalidArgument("a region of {} bytes: invalid memory class (1 byte to {})", bytes,
                             FormatBytes(ClassBytes(kClasses - 1)));
    }
    int from = wanted;
    while (from <= root_ && free_[from].empty()) ++from;
    if (from > root_) return NotEnoughSpace();
    const uint64_t offset = *free_[from].begin();
    free_[from].erase(free_[from].begin());
    for (; from > wanted; --from) {
      for (uint64_t quarter = 1; quarter < 4; ++quarter)
        free_[from - 1].insert(offset + quarter * ClassBytes(from - 1));
    }
    return Take(offset, wanted, bytes, next_generation_++);
  }

  absl::Status Release(const Handle& handle) override {
    const auto it = live_.find(handle.offset);
    if (it == live_.end() || it->second.generation != handle.generation) {
      return MakeStatus(absl::StatusCode::kNotFound, "region at {} (generation {}): not allocated",
                        handle.offset, handle.generation);
    }
    stats_held_ -= ClassBytes(it->second.memory_class);
    stats_payload_ -= it->second.payload;
    int k = it->second.memory_class;
    uint64_t offset = handle.offset;
    live_.erase(it);
    while (k < root_) {
      const uint64_t size = ClassBytes(k), parent = offset / (4 * size) * (4 * size);
      int siblings = 0;
      for (uint64_t quarter = 0; quarter < 4; ++quarter) {
        const uint64_t sibling = parent + quarter * size;
        if (sibling != offset && free_[k].count(sibling) != 0) ++siblings;
      }
      if (siblings < 3) break;
      for (uint64_t quarter = 0; quarter < 4; ++quarter) free_[k].erase(parent + quarter * size);
      offset = parent;
      ++k;
    }
    free_[k].insert(offset);
    return absl::OkStatus();
  }

  absl::Status Restore(const Region& region) override {
    const int wanted = ClassOf(region.held_bytes);
    if (wanted < 0 || wanted > root_ || ClassBytes(wanted) != region.held_bytes ||
        region.offset % region.held_bytes != 0 || region.payload_bytes > region.held_bytes ||
        region.handle.offset != region.offset) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition,
                        "restore: [{}, +{}) is no region of this arena", region.offset, region.held_bytes);
    }
    int from = wanted;
    uint64_t start = region.offset;
    while (from <= root_ && free_[from].count(start) == 0) {
      ++from;
      start = region.offset / ClassBytes(from) * ClassBytes(from);
    }
    if (from > root_) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition, "restore: [{}, +{}) is taken", region.offset,
                        region.held_bytes);
    }
    free_[from].erase(start);
    for (; from > wanted; --from) {
      const uint64_t size = ClassBytes(from - 1);
      const uint64_t keep = region.offset / size * size;
      for (uint64_t quarter = 0; quarter < 4; ++quarter) {
        if (start + quarter * size != keep) free_[from - 1].insert(start + quarter * size);
      }
      start = keep;
    }
    Take(region.offset, wanted, region.payload_bytes, region.handle.generation);
    next_generation_ = std::max(next_generation_, region.handle.generation + 1);
    return absl::OkStatus();
  }

  PoolStats stats() const override {
    int k = root_;
    while (k >= 0 && free_[k].empty()) --k;
    return {ClassBytes(root_), stats_held_, stats_payload_, live_.size(), k < 0 ? 0 : ClassBytes(k)};
  }
  bool pristine() const override { return live_.empty() && free_[root_].count(0) == 1; }

 private:
  struct Live {
    int memory_class;
    uint64_t payload, generation;
  };

  static int ClassOf(uint64_t bytes) {
    if (bytes == 0) return -1;
    for (int k = 0; k < kClasses; ++k) {
      if (bytes <= ClassBytes(k)) return k;
    }
    return -1;
  }

  Region Take(uint64_t offset, int k, uint64_t payload, uint64_t generation) {
    live_[offset] = {k, payload, generation};
    stats_held_ += ClassBytes(k);
    stats_payload_ += payload;
    return {{offset, generation}, offset, ClassBytes(k), payload};
  }

  const int root_;
  std::array<std::set<uint64_t>, kClasses> free_;  // offsets by class
  std::unordered_map<uint64_t, Live> live_;
  uint64_t next_generation_ = 1, stats_held_ = 0, stats_payload_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PoolAllocator>> MakeClassicAllocator(uint64_t capacity_bytes) {
  for (int k = 0; k < kClasses; ++k) {
    if (ClassBytes(k) == capacity_bytes) return std::make_unique<ClassicAllocator>(k);
  }
  return InvalidArgument("classic arenas are 1, 4, 16, 64, 256, 1024 or 4096 MiB large, not {}",
                         FormatBytes(capacity_bytes));
}

absl::StatusOr<Policy> ParsePolicy(std::string_view name) {
  for (const Policy policy : {Policy::kClassic, Policy::kDense}) {
    if (name == NameOf(policy)) return policy;
  }
  return InvalidArgument("allocator policy \"{}\": must be classic or dense", name);
}

const char* NameOf(Policy policy) { return policy == Policy::kClassic ? "classic" : "dense"; }

absl::StatusOr<std::unique_ptr<PoolAllocator>> MakeAllocator(Policy policy, uint64_t capacity_bytes) {
  return policy == Policy::kClassic ? MakeClassicAllocator(capacity_bytes)
                                    : MakeDenseAllocator(capacity_bytes);
}

}  // namespace lamina::layers
