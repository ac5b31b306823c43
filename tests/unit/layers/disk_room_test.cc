#include "layers/disk_room.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <vector>

#include "base/units.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"
#include "tests/unit/layers/store_fixture.h"

namespace lamina::layers {
namespace {

using absl::StatusCode;
using lamina::testing::HasStatus;

class DiskRoomTest : public ::testing::Test {
 protected:
  DiskRoom Room(const DiskLimits& limits) {
    return DiskRoom("/store", limits, [this] { return absl::StatusOr<DiskFigures>(figures_); });
  }
  DiskFigures figures_{10 * kGiB, 20 * kGiB};
};

TEST_F(DiskRoomTest, TheReserveIsNeverUsed) {
  DiskRoom room = Room({0, 5 * kGiB});
  EXPECT_OK(room.Take(15 * kGiB));
  EXPECT_THAT(
      room.Take(15 * kGiB + 1),
      HasStatus(StatusCode::kResourceExhausted, "20GiB are free at /store, layers.disk_reserve keeps 5GiB"));
  figures_.free_bytes = 4 * kGiB;
  EXPECT_THAT(room.Take(1), HasStatus(StatusCode::kResourceExhausted, "4GiB are free"));
}

TEST_F(DiskRoomTest, TheBudgetCountsAllThatTheStoreHolds) {
  DiskRoom room = Room({12 * kGiB, 5 * kGiB});
  EXPECT_OK(room.Take(2 * kGiB));
  EXPECT_THAT(room.Take(3 * kGiB),
              HasStatus(StatusCode::kResourceExhausted, "/store holds 10GiB of layers.disk_budget = 12GiB"));
  figures_.used_bytes = 13 * kGiB;
  EXPECT_THAT(room.Take(1), HasStatus(StatusCode::kResourceExhausted, "holds 13GiB"));
  figures_ = {0, 6 * kGiB};  // what is less counts
  EXPECT_OK(room.Take(1 * kGiB));
  EXPECT_THAT(room.Take(2 * kGiB), HasStatus(StatusCode::kResourceExhausted, "6GiB are free"));
}

TEST_F(DiskRoomTest, WhatOthersAreWritingIsTheirs) {
  DiskRoom room = Room({0, 5 * kGiB});
  {
    const auto other = room.Take(10 * kGiB);
    ASSERT_OK(other);
    EXPECT_EQ(other->bytes(), 10 * kGiB);
    EXPECT_THAT(room.Take(6 * kGiB), HasStatus(StatusCode::kResourceExhausted, "10GiB are being written"));
    EXPECT_OK(room.Take(5 * kGiB));
  }
  EXPECT_OK(room.Take(15 * kGiB));
}

TEST_F(DiskRoomTest, WithoutAWordATwentiethIsKept) {
  figures_ = {0, 20 * kGiB, 40 * kGiB};
  DiskRoom room = Room({});
  EXPECT_OK(room.Take(18 * kGiB));
  EXPECT_THAT(room.Take(18 * kGiB + 1),
              HasStatus(StatusCode::kResourceExhausted, "layers.disk_reserve keeps 2GiB"));
  figures_.total_bytes = 4096 * kGiB;
  EXPECT_OK(room.Take(16 * kGiB));
  EXPECT_THAT(room.Take(17 * kGiB), HasStatus(StatusCode::kResourceExhausted, "keeps 4GiB"));
  figures_ = {0, kMiB, 2 * kMiB};
  EXPECT_OK(room.Take(900 * kKiB));
}

// However many come, and however much each asks for: together they are within what is left.
TEST_F(DiskRoomTest, HalvesNeverAddUpToMoreThanThereIs) {
  DiskRoom room = Room({0, 5 * kGiB});
  std::vector<DiskRoom::Share> shares;
  uint64_t sum = 0;
  for (;;) {
    auto share = room.TakeHalf(64 * kGiB, kMiB);
    if (!share.ok()) {
      EXPECT_THAT(share, HasStatus(StatusCode::kResourceExhausted, "No space left for another layer"));
      break;
    }
    sum += share->bytes();
    shares.push_back(std::move(*share));
    ASSERT_LT(shares.size(), 100U);
  }
  EXPECT_EQ(shares.front().bytes(), 15 * kGiB / 2);
  EXPECT_LE(sum, 15 * kGiB);
  EXPECT_GT(sum, 15 * kGiB - 3 * kMiB);
  shares.clear();
  const auto small = room.TakeHalf(kGiB, kMiB);
  ASSERT_OK(small);
  EXPECT_EQ(small->bytes(), kGiB);
}

TEST_F(DiskRoomTest, AllOfItIsForWhoWritesAlone) {
  DiskRoom room = Room({0, 5 * kGiB});
  {
    const auto half = room.TakeHalf(64 * kGiB, kMiB);
    ASSERT_OK(half);
    EXPECT_THAT(room.TakeAll(64 * kGiB), HasStatus(StatusCode::kResourceExhausted, "are being written"));
  }
  const auto all = room.TakeAll(64 * kGiB);
  ASSERT_OK(all);
  EXPECT_EQ(all->bytes(), 15 * kGiB);
  EXPECT_THAT(room.Take(1), HasStatus(StatusCode::kResourceExhausted, "15GiB are being written"));
}

TEST(MeasureDisk, CountsBlocksNotLengths) {
  const lamina::testing::TempDir dir;
  std::ofstream(dir / "image") << std::string(kMiB, 'x');
  std::ofstream(dir / "arena") << "";
  std::filesystem::resize_file(dir / "arena", 64 * kGiB);
  std::filesystem::create_directory(dir / "directory");
  std::filesystem::create_symlink("/proc/kcore", dir / "link");
  sync();
  const auto figures = MeasureDisk(dir.path());
  ASSERT_OK(figures);
  EXPECT_GE(figures->used_bytes, kMiB);
  EXPECT_LT(figures->used_bytes, 2 * kMiB);
  EXPECT_GT(figures->free_bytes, 0U);
  EXPECT_THAT(MeasureDisk("/no/such/store"), HasStatus(StatusCode::kNotFound, "/no/such/store"));
}

class FullStoreTest : public StoreFixture {
 protected:
  FullStoreTest() {
    options_.measure_disk = [this]() -> absl::StatusOr<DiskFigures> {
      // Not by blocks, which a file system may give when it likes.
      DiskFigures figures{0, free_};
      for (const auto& entry : std::filesystem::directory_iterator(options_.dir))
        if (entry.path().extension() != ".arena") figures.used_bytes += entry.file_size();
      return figures;
    };
    options_.disk.reserve_bytes = kGiB;
  }
  // Its images stay within what they may take.
  std::unique_ptr<LayerStore> OpenBounded() {
    return *LayerStore::Open(FileSystem::Real(), options_,
                             [this](const std::string& directory, const std::string& path, uint64_t most,
                                    const std::stop_token&) -> absl::StatusOr<Image> {
                               ASSIGN_OR_RETURN(const Image made, Make(directory, path));
                               if (made.bytes <= most) return made;
                               std::filesystem::remove(path);
                               return absl::ResourceExhaustedError("File too large");
                             });
  }
  uint64_t free_ = 100 * kGiB;
};

TEST_F(FullStoreTest, WithoutRoomALayerIsRefusedAndThoseThatAreThereServe) {
  auto store = *Open();
  const std::string layer = Layer("a", "hello", 64 * kKiB);
  ASSERT_OK(store->Place(Ask("s1", layer)));
  free_ = kGiB;
  EXPECT_THAT(store->Place(Ask("s2", Layer("b", "other", 64 * kKiB))),
              HasStatus(StatusCode::kResourceExhausted, "1GiB are free"));
  EXPECT_OK(store->Place(Ask("s2", layer)));
  EXPECT_EQ(store->counters().conversion_failures, 1u);
  EXPECT_EQ(Files(), (std::set<std::string>{"index.json", "arena-1.arena"}));
  free_ = 100 * kGiB;
  EXPECT_OK(store->Place(Ask("s2", Layer("b", "other", 64 * kKiB))));
}

TEST_F(FullStoreTest, WhatIsIdleGoesBeforeAnybodyIsRefused) {
  options_.disk.budget_bytes = kMiB;
  options_.vpmem = false;
  auto store = OpenBounded();
  ASSERT_OK(store->Place(Ask("s1", Layer("a", "hello", 600 * kKiB))));
  EXPECT_THAT(store->Place(Ask("s2", Layer("b", "other", 600 * kKiB))).status(),
              HasStatus(StatusCode::kResourceExhausted));
  ASSERT_OK(store->ReleaseSandbox("s1"));
  EXPECT_EQ(store->disks().size(), 1u) << "a cache, within its own budget";
  ASSERT_OK(store->Place(Ask("s2", Layer("b", "other", 600 * kKiB))));
  EXPECT_EQ(store->counters().evictions, 1u);
}

// Half of what is left is too little, all of it is enough; but not while others write.
TEST_F(FullStoreTest, AnImageThatFitsIsMade) {
  options_.disk.budget_bytes = kMiB;
  options_.vpmem = false;
  auto store = OpenBounded();
  ASSERT_OK(store->Place(Ask("s1", Layer("a", "hello", 900 * kKiB))));
  EXPECT_EQ(made_, 2);
  EXPECT_THAT(store->Place(Ask("s2", Layer("b", "other", 200 * kKiB))).status(),
              HasStatus(StatusCode::kResourceExhausted));
}

// An image that is there needs no second place where there is none.
TEST_F(FullStoreTest, WithoutRoomForACopyTheImageIsTheDisk) {
  auto store = *LayerStore::Open(
      FileSystem::Real(), options_,
      [this](const std::string& directory, const std::string& path, uint64_t most, const std::stop_token&) {
        EXPECT_EQ(most, std::min(options_.convert.image_bytes, 99 * kGiB / 2));
        free_ = kGiB + 4 * kKiB;
        return Make(directory, path);
      });
  const auto placed = store->Place(Ask("s1", Layer("a", "hello", 64 * kKiB)));
  ASSERT_OK(placed);
  EXPECT_EQ(placed->kind, PlacementKind::kScsi);
  EXPECT_NE(placed->why_scsi.find("No space left"), std::string::npos) << placed->why_scsi;
}

}  // namespace
}  // namespace lamina::layers
