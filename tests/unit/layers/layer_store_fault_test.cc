// Each durability call of a store's life fails once; nothing may be leaked, nothing lost that was promised.
#include "tests/testing/dying_file_system.h"
#include "tests/testing/status_matchers.h"
#include "tests/unit/layers/store_fixture.h"

namespace lamina::layers {
namespace {

class LayerStoreFaultTest : public StoreFixture {
 protected:
  LayerStoreFaultTest() { options_.scsi_verity = true; }
  // True when all succeeded.
  bool Live(LayerStore& store, std::vector<Placement>* placed) {
    bool ok = true;
    const auto place = [&](const std::string& sandbox, const std::string& source) {
      const absl::StatusOr<Placement> one = store.Place(Ask(sandbox, source));
      if (one.ok() && placed != nullptr) placed->push_back(*one);
      ok = ok && one.ok();
    };
    place("s1", Layer("a", "aaa", 64 * kKiB));
    place("s1", Layer("big", "big", 9 * kMiB));
    place("s2", Layer("a", "aaa", 64 * kKiB));
    place("s2", Layer("b", "bbb", 2 * kMiB));
    ok = store.ReleaseSandbox("s1").ok() && ok;
    ok = store.Gc(0).ok() && ok;
    return ok;
  }
};

TEST_F(LayerStoreFaultTest, EveryCallFailsOnce) {
  bool clean = false;
  for (int fail_at = 0; !clean; ++fail_at) {
    ASSERT_LT(fail_at, 200);
    options_.dir = root_ + "/store" + std::to_string(fail_at);
    FaultyFileSystem faulty(FileSystem::Real());
    faulty.fail_at = fail_at;
    auto opened = Open(faulty);
    if (!opened.ok()) continue;
    std::vector<Placement> placed;
    const bool ok = Live(**opened, &placed);
    clean = ok && faulty.calls <= fail_at;
    faulty.fail_at = -1;
    // What s2 was promised holds, in this process and in the next.
    const std::string layer_b = ImageOf("bbb", 2 * kMiB);
    for (const Placement& placement : placed) {
      if (placement.payload_bytes == layer_b.size()) {
        EXPECT_EQ(Seen(placement), layer_b) << fail_at;
      }
    }
    EXPECT_TRUE(Live(**opened, nullptr)) << "after fault " << fail_at;
    opened->reset();
    auto again = Open(faulty);
    ASSERT_OK(again) << fail_at << ": " << again.status();
    uint64_t regions = 0;
    for (const ArenaInfo& arena : (*again)->arenas()) {
      for (const RegionInfo& region : arena.regions) EXPECT_EQ(region.users.count("s1"), 0u) << fail_at;
      regions += arena.regions.size();
    }
    EXPECT_EQ(regions, 2u) << fail_at;
    ASSERT_OK((*again)->ReleaseSandbox("s2"));
    ASSERT_OK((*again)->Gc(0));
    EXPECT_EQ(Files(), std::set<std::string>{"index.json"}) << fail_at;
  }
}

class LayerStoreDeathTest : public LayerStoreFaultTest, public ::testing::WithParamInterface<bool> {};

// Killed at a call, or without power: then what was not synced is gone, too.
TEST_P(LayerStoreDeathTest, AfterEveryCallLeavesWhatOpenCanRead) {
  bool clean = false;
  for (int fail_at = 1; !clean; ++fail_at) {
    ASSERT_LT(fail_at, 200);
    options_.dir = root_ + "/store" + std::to_string(fail_at);
    std::filesystem::create_directories(options_.dir);
    testing::DyingFileSystem dying;
    dying.die_at = fail_at;
    dying.part = 0.5;
    std::vector<Placement> placed;
    {
      auto opened = Open(dying);
      ASSERT_OK(opened);
      clean = Live(**opened, &placed);
    }
    if (GetParam()) dying.LosePower();
    auto again = Open();
    ASSERT_OK(again) << fail_at << ": " << again.status();
    // Whoever was answered is known.
    for (const Placement& placement : placed) {
      bool known = false;
      for (const ArenaInfo& arena : (*again)->arenas()) {
        for (const RegionInfo& region : arena.regions)
          known = known || (region.layer_id == placement.layer_id && region.offset == placement.offset);
      }
      for (const DiskInfo& disk : (*again)->disks()) known = known || disk.layer_id == placement.layer_id;
      EXPECT_TRUE(known || clean || placement.payload_bytes == 9 * kMiB) << fail_at;
    }
    EXPECT_TRUE(Live(**again, nullptr)) << fail_at;
    ASSERT_OK((*again)->ReleaseSandbox("s2"));
    ASSERT_OK((*again)->Gc(0));
    EXPECT_EQ(Files(), std::set<std::string>{"index.json"}) << fail_at;
  }
}
INSTANTIATE_TEST_SUITE_P(Power, LayerStoreDeathTest, ::testing::Bool());

}  // namespace
}  // namespace lamina::layers
