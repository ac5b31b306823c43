// Both policies against an interval oracle, and classic against its rules written out.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "base/units.h"
#include "layers/device_pool.h"
#include "layers/pool_allocator.h"
#include "tests/testing/status_matchers.h"

namespace lamina::layers {
namespace {

using absl::StatusCode;

std::unique_ptr<PoolAllocator> Make(Policy policy, uint64_t bytes) {
  auto pool = MakeAllocator(policy, bytes);
  EXPECT_OK(pool);
  return std::move(*pool);
}

// What is live, as intervals; every answer of the allocator is checked against it.
class Oracle {
 public:
  explicit Oracle(uint64_t capacity) : capacity_(capacity) {}

  void Add(const Region& region, uint64_t asked) {
    ASSERT_EQ(region.payload_bytes, asked);
    ASSERT_EQ(region.handle.offset, region.offset);
    ASSERT_GE(region.held_bytes, asked);
    ASSERT_LE(region.offset + region.held_bytes, capacity_);
    const auto after = live_.lower_bound(region.offset);
    if (after != live_.end()) {
      ASSERT_LE(region.offset + region.held_bytes, after->first);
    }
    if (after != live_.begin()) {
      ASSERT_LE(std::prev(after)->first + std::prev(after)->second.held_bytes, region.offset);
    }
    live_[region.offset] = region;
    held_ += region.held_bytes;
    payload_ += asked;
  }
  void Remove(const Region& region) {
    live_.erase(region.offset);
    held_ -= region.held_bytes;
    payload_ -= region.payload_bytes;
  }
  void Check(const PoolAllocator& pool) const {
    const PoolStats stats = pool.stats();
    ASSERT_EQ(stats.capacity_bytes, capacity_);
    ASSERT_EQ(stats.held_bytes, held_);
    ASSERT_EQ(stats.payload_bytes, payload_);
    ASSERT_EQ(stats.live, live_.size());
    ASSERT_LE(stats.largest_free_bytes, capacity_ - held_);
  }
  // The largest gap between live regions.
  uint64_t LargestGap() const {
    uint64_t at = 0, largest = 0;
    for (const auto& [offset, region] : live_) {
      largest = std::max(largest, offset - at);
      at = offset + region.held_bytes;
    }
    return std::max(largest, capacity_ - at);
  }
  const std::map<uint64_t, Region>& live() const { return live_; }

 private:
  const uint64_t capacity_;
  std::map<uint64_t, Region> live_;
  uint64_t held_ = 0, payload_ = 0;
};

class AllocatorProperty : public ::testing::TestWithParam<Policy> {};

TEST_P(AllocatorProperty, AMillionOperationsAgainstIntervals) {
  const uint64_t capacity = 256 * kMiB;
  const auto pool = Make(GetParam(), capacity);
  Oracle oracle(capacity);
  std::mt19937_64 random(20240607);
  std::vector<Region> live;
  std::vector<Handle> stale;
  for (int i = 0; i < 1'000'000; ++i) {
    if (HasFatalFailure()) return;
    // Phases of growth and of decline, so that full and nearly empty arenas are met.
    const bool grow = random() % 10 < (i / 50'000 % 2 == 0 ? 6 : 4);
    if (grow || live.empty()) {
      const uint64_t bytes = 1 + random() % (uint64_t{1} << (10 + random() % 17));
      const absl::StatusOr<Region> region = pool->Allocate(bytes);
      if (region.ok()) {
        oracle.Add(*region, bytes);
        live.push_back(*region);
      } else {
        ASSERT_THAT(region, testing::HasStatus(StatusCode::kResourceExhausted));
      }
    } else {
      std::swap(live[random() % live.size()], live.back());
      ASSERT_OK(pool->Release(live.back().handle));
      oracle.Remove(live.back());
      if (stale.size() < 1000)
        stale.push_back(live.back().handle);
      else
        stale[random() % stale.size()] = live.back().handle;
      live.pop_back();
    }
    if (!stale.empty() && i % 7 == 0) {
      ASSERT_THAT(pool->Release(stale[random() % stale.size()]), testing::HasStatus(StatusCode::kNotFound));
    }
    if (i % 97 == 0) oracle.Check(*pool);
  }
  std::shuffle(live.begin(), live.end(), random);
  for (const Region& region : live) {
    ASSERT_FALSE(pool->pristine());
    ASSERT_OK(pool->Release(region.handle));
  }
  EXPECT_TRUE(pool->pristine());
  EXPECT_EQ(pool->stats().held_bytes, 0u);
  EXPECT_EQ(pool->stats().largest_free_bytes, capacity);
  EXPECT_OK(pool->Allocate(capacity)) << "one arena again";
}

TEST_P(AllocatorProperty, StaleHandleOfAReusedOffsetChangesNothing) {
  const auto pool = Make(GetParam(), 64 * kMiB);
  const Region first = *pool->Allocate(kMiB);
  ASSERT_OK(pool->Release(first.handle));
  const absl::Status twice = pool->Release(first.handle);
  EXPECT_THAT(twice, testing::HasStatus(StatusCode::kNotFound));
  EXPECT_NE(twice.message().find("not allocated"), absl::string_view::npos);
  const Region second = *pool->Allocate(kMiB);
  ASSERT_EQ(second.offset, first.offset);
  EXPECT_THAT(pool->Release(first.handle), testing::HasStatus(StatusCode::kNotFound));
  EXPECT_EQ(pool->stats().live, 1u);
  EXPECT_THAT(pool->Release(Handle{}), testing::HasStatus(StatusCode::kNotFound)) << "no generation is 0";
  EXPECT_OK(pool->Release(second.handle));
  EXPECT_TRUE(pool->pristine());
}

TEST_P(AllocatorProperty, RestoreTakesTheSameRegionsInAnyOrder) {
  const uint64_t capacity = 1024 * kMiB;
  const auto pool = Make(GetParam(), capacity);
  std::mt19937_64 random(3);
  std::vector<Region> live;
  for (int i = 0; i < 400; ++i) {
    const auto region = pool->Allocate(1 + random() % (8 * kMiB));
    if (region.ok()) live.push_back(*region);
    if (i % 3 == 0 && !live.empty()) {
      std::swap(live[random() % live.size()], live.back());
      ASSERT_OK(pool->Release(live.back().handle));
      live.pop_back();
    }
  }
  std::shuffle(live.begin(), live.end(), random);
  const auto again = Make(GetParam(), capacity);
  for (const Region& region : live) ASSERT_OK(again->Restore(region));
  EXPECT_EQ(again->stats().held_bytes, pool->stats().held_bytes);
  EXPECT_EQ(again->stats().payload_bytes, pool->stats().payload_bytes);
  EXPECT_EQ(again->stats().largest_free_bytes, pool->stats().largest_free_bytes);
  for (const Region& region : live)
    EXPECT_THAT(again->Restore(region), testing::HasStatus(StatusCode::kFailedPrecondition));
  // Handles from before the restart are good, and new ones differ from all of them.
  const Region fresh = *again->Allocate(4096);
  for (const Region& region : live) EXPECT_LT(region.handle.generation, fresh.handle.generation);
  ASSERT_OK(again->Release(fresh.handle));
  for (const Region& region : live) ASSERT_OK(again->Release(region.handle));
  EXPECT_TRUE(again->pristine());
}

TEST_P(AllocatorProperty, RestoreRefusesWhatCannotBeARegion) {
  const auto pool = Make(GetParam(), 64 * kMiB);
  const auto refused = [&](uint64_t offset, uint64_t held, uint64_t payload) {
    EXPECT_THAT(pool->Restore({{offset, 1}, offset, held, payload}),
                testing::HasStatus(StatusCode::kFailedPrecondition))
        << offset << " " << held << " " << payload;
  };
  refused(0, 0, 0);
  refused(64 * kMiB, kMiB, 1);
  refused(63 * kMiB, 4 * kMiB, 1);
  refused(0, kMiB, kMiB + 1);
  refused(1, kMiB, 1);
  refused(UINT64_MAX - kMiB + 1, kMiB, 1);
  refused(UINT64_MAX / 4096 * 4096, UINT64_MAX / 4096 * 4096, 1);
  EXPECT_THAT(pool->Restore({{0, 1}, kMiB, kMiB, 1}), testing::HasStatus(StatusCode::kFailedPrecondition))
      << "other offset";
  EXPECT_TRUE(pool->pristine());
}

TEST_P(AllocatorProperty, ErrorsTellApart) {
  const auto pool = Make(GetParam(), 4 * kMiB);
  EXPECT_THAT(pool->Allocate(0), testing::HasStatus(StatusCode::kInvalidArgument));
  EXPECT_THAT(pool->Allocate(4 * kGiB + 1), testing::HasStatus(StatusCode::kInvalidArgument));
  EXPECT_THAT(pool->Allocate(UINT64_MAX), testing::HasStatus(StatusCode::kInvalidArgument));
  ASSERT_OK(pool->Allocate(4 * kMiB));
  EXPECT_THAT(pool->Allocate(1), testing::HasStatus(StatusCode::kResourceExhausted));
}

INSTANTIATE_TEST_SUITE_P(Policies, AllocatorProperty, ::testing::Values(Policy::kClassic, Policy::kDense));

// The rules of classic, as a plain scan over a tree of regions.
class ClassicModel {
 public:
  explicit ClassicModel(int root) : root_(root) { free_.insert({root, 0}); }
  static uint64_t Bytes(int k) { return kMiB << (2 * k); }
  // The offset, or -1.
  int64_t Allocate(uint64_t bytes) {
    int wanted = 0;
    while (Bytes(wanted) < bytes) ++wanted;
    for (int from = wanted; from <= root_; ++from) {
      const auto it = free_.lower_bound({from, 0});
      if (it == free_.end() || it->first != from) continue;
      const uint64_t offset = it->second;
      free_.erase(it);
      for (int k = from; k > wanted; --k) {
        for (uint64_t i = 1; i < 4; ++i) free_.insert({k - 1, offset + i * Bytes(k - 1)});
      }
      live_[offset] = wanted;
      return static_cast<int64_t>(offset);
    }
    return -1;
  }
  void Release(uint64_t offset) {
    int k = live_.at(offset);
    live_.erase(offset);
    free_.insert({k, offset});
    for (; k < root_; ++k) {
      const uint64_t parent = offset / Bytes(k + 1) * Bytes(k + 1);
      for (uint64_t i = 0; i < 4; ++i) {
        if (free_.count({k, parent + i * Bytes(k)}) == 0) return;
      }
      for (uint64_t i = 0; i < 4; ++i) free_.erase({k, parent + i * Bytes(k)});
      free_.insert({k + 1, parent});
      offset = parent;
    }
  }

 private:
  const int root_;
  std::set<std::pair<int, uint64_t>> free_;
  std::map<uint64_t, int> live_;
};

TEST(ClassicAllocator, GivesTheOffsetsOfItsRules) {
  const auto pool = Make(Policy::kClassic, 4 * kGiB);
  ClassicModel model(6);
  std::mt19937_64 random(99);
  std::vector<Region> live;
  for (int i = 0; i < 100'000; ++i) {
    if (random() % 2 == 0 || live.empty()) {
      const uint64_t bytes = 1 + random() % (uint64_t{1} << (16 + random() % 15));
      const auto region = pool->Allocate(bytes);
      const int64_t expected = model.Allocate(bytes);
      ASSERT_EQ(region.ok(), expected >= 0);
      if (region.ok()) {
        ASSERT_EQ(region->offset, static_cast<uint64_t>(expected));
        live.push_back(*region);
      }
    } else {
      std::swap(live[random() % live.size()], live.back());
      ASSERT_OK(pool->Release(live.back().handle));
      model.Release(live.back().offset);
      live.pop_back();
    }
  }
}

TEST(ClassicAllocator, ClassesSplitsAndMerges) {
  const auto pool = Make(Policy::kClassic, 4 * kGiB);
  EXPECT_EQ(pool->Allocate(1)->held_bytes, kMiB);
  EXPECT_EQ(pool->Allocate(kMiB + 1)->held_bytes, 4 * kMiB);
  EXPECT_EQ(pool->Allocate(4 * kMiB)->offset, 8 * kMiB);
  EXPECT_EQ(pool->Allocate(kMiB)->offset, kMiB) << "the split region's next quarter";
  EXPECT_EQ(pool->Allocate(16 * kMiB + 1)->held_bytes, 64 * kMiB);
  EXPECT_EQ(pool->Allocate(256 * kMiB + 1)->held_bytes, kGiB);
  EXPECT_THAT(pool->Allocate(kGiB + 1), testing::HasStatus(StatusCode::kResourceExhausted));
  EXPECT_THAT(pool->Allocate(4 * kGiB + 1), testing::HasStatus(StatusCode::kInvalidArgument));
}

TEST(ClassicAllocator, AValidClassAboveASmallArenaIsNoRoom) {
  const auto pool = Make(Policy::kClassic, kGiB);
  EXPECT_THAT(pool->Allocate(2 * kGiB), testing::HasStatus(StatusCode::kResourceExhausted));
  EXPECT_THAT(pool->Allocate(5 * kGiB), testing::HasStatus(StatusCode::kInvalidArgument));
}

TEST(ClassicAllocator, ArenasAreOneClassLarge) {
  for (const uint64_t bytes : {kMiB, 4 * kMiB, 16 * kMiB, 64 * kMiB, 256 * kMiB, kGiB, 4 * kGiB})
    EXPECT_OK(MakeClassicAllocator(bytes));
  for (const uint64_t bytes : {uint64_t{0}, 2 * kMiB, 2 * kGiB, 16 * kGiB})
    EXPECT_THAT(MakeClassicAllocator(bytes), testing::HasStatus(StatusCode::kInvalidArgument));
}

TEST(DenseAllocator, LargeRegionsStartAtHugePagesSmallOnesFillTheGaps) {
  const auto pool = Make(Policy::kDense, 16 * kMiB);
  EXPECT_EQ(pool->Allocate(1)->held_bytes, 4 * kKiB);
  const Region large = *pool->Allocate(2 * kMiB + 1);
  EXPECT_EQ(large.offset, 2 * kMiB);
  EXPECT_EQ(large.held_bytes, 2 * kMiB + 4 * kKiB);
  EXPECT_EQ(pool->Allocate(kMiB)->offset, 4 * kKiB)
      << "before the large one, where a huge page would not fit";
}

TEST(DenseAllocator, AnAlignedPlaceIsFoundBehindManyMisalignedOnes) {
  const auto pool = Make(Policy::kDense, 1024 * kMiB);
  // 3 MiB holes that begin 1 MiB past an even one hold no... aligned 3 MiB, however many there are.
  std::vector<Region> holes;
  for (int i = 0; i < 200; ++i) {
    const Region wall = *pool->Allocate(kMiB);
    holes.push_back(*pool->Allocate(kMiB));
    (void)wall;
    const Region more = *pool->Allocate(2 * kMiB);
    holes.push_back(more);
  }
  for (const Region& hole : holes) ASSERT_OK(pool->Release(hole.handle));
  const absl::StatusOr<Region> region = pool->Allocate(3 * kMiB);
  ASSERT_OK(region);
  EXPECT_EQ(region->offset % (2 * kMiB), 0u);
}

TEST(DenseAllocator, RefusesOnlyWhatNoGapHolds) {
  const uint64_t capacity = 128 * kMiB;
  const auto pool = Make(Policy::kDense, capacity);
  Oracle oracle(capacity);
  std::mt19937_64 random(5);
  std::vector<Region> live;
  int refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    if (random() % 5 < 3 || live.empty()) {
      const uint64_t bytes = 1 + random() % (uint64_t{1} << (12 + random() % 14));
      const uint64_t held = (bytes + 4095) / 4096 * 4096;
      const auto region = pool->Allocate(bytes);
      if (region.ok()) {
        oracle.Add(*region, bytes);
        if (HasFatalFailure()) return;
        live.push_back(*region);
      } else {
        ++refused;
        // A gap may be lost to alignment, by less than 2 MiB.
        ASSERT_LT(oracle.LargestGap(), held < 2 * kMiB ? held : held + 2 * kMiB);
      }
    } else {
      std::swap(live[random() % live.size()], live.back());
      ASSERT_OK(pool->Release(live.back().handle));
      oracle.Remove(live.back());
      live.pop_back();
    }
  }
  EXPECT_GT(refused, 100);
}

TEST(Allocators, UnknownPolicyAndOddSizes) {
  EXPECT_THAT(ParsePolicy("buddy"), testing::HasStatus(StatusCode::kInvalidArgument));
  EXPECT_THAT(MakeDenseAllocator(0), testing::HasStatus(StatusCode::kInvalidArgument));
  EXPECT_THAT(MakeDenseAllocator(3 * kMiB), testing::HasStatus(StatusCode::kInvalidArgument));
}

TEST(DevicePool, FirstDeviceThatFits) {
  DevicePool pool = *DevicePool::Create(Policy::kDense, 16 * kMiB, 2);
  const DeviceRegion a = *pool.Allocate(10 * kMiB), b = *pool.Allocate(10 * kMiB),
                     c = *pool.Allocate(4 * kMiB);
  EXPECT_EQ(a.device, 0u);
  EXPECT_EQ(b.device, 1u);
  EXPECT_EQ(c.device, 0u);
  EXPECT_THAT(pool.Allocate(10 * kMiB), testing::HasStatus(StatusCode::kResourceExhausted));
  EXPECT_THAT(pool.Allocate(17 * kMiB), testing::HasStatus(StatusCode::kInvalidArgument));
  EXPECT_EQ(pool.Release(1, a.region.handle).code(), absl::StatusCode::kOk)
      << "b has the same handle on device 1";
  EXPECT_THAT(pool.Release(1, b.region.handle), testing::HasStatus(StatusCode::kNotFound));
  EXPECT_THAT(pool.Release(2, a.region.handle), testing::HasStatus(StatusCode::kNotFound));
  EXPECT_EQ(pool.stats().live, 2u);
  EXPECT_EQ(pool.stats().largest_free_bytes, 16 * kMiB);
  ASSERT_OK(pool.Release(0, a.region.handle));
  ASSERT_OK(pool.Release(0, c.region.handle));
  EXPECT_TRUE(pool.pristine());
}

}  // namespace
}  // namespace lamina::layers
