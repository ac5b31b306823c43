#include <sys/stat.h>

#include <barrier>
#include <chrono>
#include <future>
#include <latch>
#include <random>
#include <thread>

#include "base/framing.h"
#include "layers/digest.h"
#include "layers/layer_index.h"
#include "tests/testing/status_matchers.h"
#include "tests/unit/layers/store_fixture.h"

namespace lamina::layers {
namespace {

using absl::StatusCode;

class LayerStoreTest : public StoreFixture {};

TEST_F(LayerStoreTest, PlacesOnceForManySandboxes) {
  auto store = *Open();
  const std::string layer = Layer("a", "hello", 64 * kKiB);
  const Placement first = *store->Place(Ask("s1", layer)), second = *store->Place(Ask("s2", layer));
  EXPECT_EQ(made_, 1);
  EXPECT_FALSE(first.reused);
  EXPECT_TRUE(second.reused);
  EXPECT_EQ(first.kind, PlacementKind::kVpmem);
  EXPECT_EQ(first.layer_id.size(), 64u);
  EXPECT_EQ(second.arena_path, first.arena_path);
  EXPECT_EQ(second.offset, first.offset);
  EXPECT_EQ(Seen(first), ImageOf("hello", 64 * kKiB));
  struct stat info {};
  ASSERT_EQ(stat(first.arena_path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  EXPECT_EQ(static_cast<uint64_t>(info.st_size), options_.arena_bytes);
  EXPECT_LT(info.st_blocks * 512, 1 << 20) << "sparse";
  const StoreCounters counters = store->counters();
  EXPECT_EQ(counters.placed_vpmem, 1u);
  EXPECT_EQ(counters.reuses, 1u);
  EXPECT_EQ(counters.converting, 0u);
  EXPECT_EQ(Files(), (std::set<std::string>{"index.json", "arena-1.arena"}))
      << "the converted file is not kept";
}

TEST_F(LayerStoreTest, TheSameLayerTwiceInASandboxCountsOnce) {
  auto store = *Open();
  const std::string layer = Layer("a", "hello", 64 * kKiB);
  const Placement first = *store->Place(Ask("s1", layer)), again = *store->Place(Ask("s1", layer));
  EXPECT_EQ(again.offset, first.offset);
  EXPECT_EQ(store->arenas()[0].regions[0].users, std::set<std::string>{"s1"});
  ASSERT_OK(store->ReleaseSandbox("s1"));
  ASSERT_OK(store->ReleaseSandbox("s1")) << "idempotent";
  EXPECT_TRUE(store->arenas()[0].regions[0].users.empty()) << "idle, and still there";
  EXPECT_TRUE(store->Place(Ask("s2", layer))->reused);
  EXPECT_EQ(made_, 1);
}

TEST_F(LayerStoreTest, EqualContentFromTwoSourcesIsOneRegion) {
  auto store = *Open();
  const Placement a = *store->Place(Ask("s1", Layer("a", "same", 64 * kKiB)));
  const Placement b = *store->Place(Ask("s1", Layer("b", "same", 64 * kKiB)));
  EXPECT_EQ(a.offset, b.offset);
  EXPECT_EQ(a.layer_id, b.layer_id);
  EXPECT_EQ(store->arenas()[0].regions.size(), 1u);
}

TEST_F(LayerStoreTest, ArenasDoNotCrossDomainsButConversionsDo) {
  auto store = *Open();
  const std::string layer = Layer("a", "hello", 64 * kKiB);
  const Placement one = *store->Place(Ask("s1", layer, "ns1")), two = *store->Place(Ask("s2", layer, "ns2"));
  EXPECT_NE(one.arena_id, two.arena_id);
  EXPECT_EQ(one.layer_id, two.layer_id);
  EXPECT_EQ(Seen(two), ImageOf("hello", 64 * kKiB));
  EXPECT_EQ(made_, 1);
  // A damaged copy is not passed on.
  Damage(one);
  Damage(two);
  const Placement three = *store->Place(Ask("s3", layer, "ns3"));
  EXPECT_EQ(Seen(three), ImageOf("hello", 64 * kKiB));
  EXPECT_EQ(made_, 2);
}

TEST_F(LayerStoreTest, SixtyFourAskersOneConversion) {
  for (const bool one_domain : {true, false}) {
    auto store = *Open();
    const std::string layer = Layer(one_domain ? "a" : "b", one_domain ? "one" : "many", kMiB);
    made_ = 0;
    std::vector<std::thread> threads;
    std::barrier start(64);
    std::atomic<int> failed = 0;
    for (int i = 0; i < 64; ++i) {
      threads.emplace_back([&, i] {
        start.arrive_and_wait();
        const auto placed = store->Place(
            Ask("s" + std::to_string(i), layer, one_domain ? "ns" : "ns" + std::to_string(i % 8)));
        if (!placed.ok() || Seen(*placed) != ImageOf(one_domain ? "one" : "many", kMiB)) ++failed;
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(failed, 0);
    EXPECT_EQ(made_, 1) << one_domain;
  }
}

TEST_F(LayerStoreTest, AFailedConversionIsEveryWaitersError) {
  std::latch converting(1), go(1);
  auto store =
      *LayerStore::Open(FileSystem::Real(), options_,
                        [&](const std::string&, const std::string&, uint64_t, const std::stop_token&) {
                          if (++made_ == 1) converting.count_down();
                          go.wait();
                          return absl::StatusOr<Image>(absl::DataLossError("mkfs says no"));
                        });
  const std::string layer = Layer("a", "hello", 64 * kKiB);
  std::vector<std::future<absl::Status>> results;
  results.push_back(std::async(std::launch::async, [&] { return store->Place(Ask("s0", layer)).status(); }));
  converting.wait();
  PlaceRequest hurried = Ask("late", layer);
  hurried.patience.deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
  EXPECT_THAT(store->Place(hurried), testing::HasStatus(StatusCode::kDeadlineExceeded));
  std::latch entered(15);
  for (int i = 1; i < 16; ++i) {
    results.push_back(std::async(std::launch::async, [&, i] {
      entered.count_down();
      return store->Place(Ask("s" + std::to_string(i), layer)).status();
    }));
  }
  entered.wait();
  go.count_down();
  for (auto& result : results) {
    const absl::Status status = result.get();
    EXPECT_THAT(status, testing::HasStatus(StatusCode::kDataLoss));
  }
  EXPECT_TRUE(store->arenas().empty());
  EXPECT_EQ(store->counters().converting, 0u);
}

TEST_F(LayerStoreTest, DifferentLayersAreMadeInParallel) {
  std::barrier both(2);  // either conversion ends only once the other has begun
  auto store =
      *LayerStore::Open(FileSystem::Real(), options_,
                        [&](const std::string& d, const std::string& p, uint64_t, const std::stop_token&) {
                          both.arrive_and_wait();
                          return Make(d, p);
                        });
  const std::string a = Layer("a", "aaa", 64 * kKiB), b = Layer("b", "bbb", 64 * kKiB);
  auto other = std::async(std::launch::async, [&] { return store->Place(Ask("s1", a)).status(); });
  EXPECT_OK(store->Place(Ask("s2", b)));
  EXPECT_OK(other.get());
}

TEST_F(LayerStoreTest, EqualContentMadeAtTheSameTimeIsOneRegion) {
  std::barrier both(2);
  auto store =
      *LayerStore::Open(FileSystem::Real(), options_,
                        [&](const std::string& d, const std::string& p, uint64_t, const std::stop_token&) {
                          both.arrive_and_wait();
                          return Make(d, p);
                        });
  const std::string a = Layer("a", "same", 2 * kMiB), b = Layer("b", "same", 2 * kMiB);
  auto other = std::async(std::launch::async, [&] { return *store->Place(Ask("s1", a)); });
  const Placement mine = *store->Place(Ask("s2", b));
  const Placement theirs = other.get();
  EXPECT_EQ(mine.offset, theirs.offset);
  EXPECT_EQ(store->arenas()[0].held_bytes, 2 * kMiB) << "nothing held without a name";
}

TEST_F(LayerStoreTest, ScsiOnlyForItsReasons) {
  auto store = *Open();
  const Placement large = *store->Place(Ask("s1", Layer("big", "big", 9 * kMiB)));
  EXPECT_EQ(large.kind, PlacementKind::kScsi);
  EXPECT_NE(large.why_scsi.find("over the maximum"), std::string::npos) << large.why_scsi;
  EXPECT_EQ(Seen(large), ImageOf("big", 9 * kMiB));
  EXPECT_EQ(store->Place(Ask("s2", Layer("big", "big", 9 * kMiB)))->image_path, large.image_path);

  const std::string small = Layer("small", "small", 64 * kKiB);
  PlaceRequest no_slot = Ask("s3", small);
  no_slot.free_arena_slots = 0;
  const Placement disk = *store->Place(no_slot);
  EXPECT_EQ(disk.kind, PlacementKind::kScsi);
  EXPECT_NE(disk.why_scsi.find("no device slot"), std::string::npos) << disk.why_scsi;
  const int made = made_;
  const Placement region = *store->Place(Ask("s4", small));
  EXPECT_EQ(region.kind, PlacementKind::kVpmem) << "a slot is there: the disk of another pod is no reason";
  EXPECT_EQ(made_, made) << "copied from the disk's image";
  EXPECT_EQ(Seen(region), ImageOf("small", 64 * kKiB));

  PlaceRequest attached = Ask("s5", small);
  attached.free_arena_slots = 0;
  attached.attached_arenas = {{region.arena_id, region.arena_bytes}};
  EXPECT_EQ(store->Place(attached)->kind, PlacementKind::kVpmem);
}

TEST_F(LayerStoreTest, ALayerLargerThanTheArenaIsADisk) {
  options_.arena_bytes = 4 * kMiB;
  for (const Policy policy : {Policy::kDense, Policy::kClassic}) {
    options_.policy = policy;
    options_.dir = root_ + "/" + NameOf(policy);
    auto store = *Open();
    const Placement idle = *store->Place(Ask("s0", Layer("idle", "idle", 64 * kKiB)));
    ASSERT_OK(store->ReleaseSandbox("s0"));
    EXPECT_EQ(store->Place(Ask("s1", Layer("a", "a", 5 * kMiB)))->kind, PlacementKind::kScsi);
    EXPECT_TRUE(store->Place(Ask("s2", Layer("idle", "idle", 64 * kKiB)))->reused)
        << "nothing evicted in vain";
  }
}

TEST_F(LayerStoreTest, VpmemOff) {
  options_.vpmem = false;
  auto store = *Open();
  const Placement placed = *store->Place(Ask("s1", Layer("a", "hello", 64 * kKiB)));
  EXPECT_EQ(placed.kind, PlacementKind::kScsi);
  EXPECT_TRUE(store->arenas().empty());
  ASSERT_OK(store->ReleaseSandbox("s1"));
  ASSERT_OK(store->Gc(0));
  EXPECT_EQ(Files(), std::set<std::string>{"index.json"});
}

TEST_F(LayerStoreTest, FailuresAreErrorsNotDisks) {
  auto store = *Open();
  EXPECT_THAT(store->Place(Ask("s1", root_ + "/missing")), testing::HasStatus(StatusCode::kNotFound));
  std::filesystem::create_directories(root_ + "/empty");
  EXPECT_THAT(store->Place(Ask("s1", root_ + "/empty")), testing::HasStatus(StatusCode::kInternal));
  std::ofstream(root_ + "/file") << "no image";
  EXPECT_THAT(store->Place(Ask("s1", root_ + "/file")), testing::HasStatus(StatusCode::kInvalidArgument));
  EXPECT_THAT(store->Place(Ask("s1", "/dev/null")), testing::HasStatus(StatusCode::kInvalidArgument));
  EXPECT_THAT(store->Place(Ask("", root_)), testing::HasStatus(StatusCode::kInvalidArgument));
  EXPECT_TRUE(store->arenas().empty());
  EXPECT_TRUE(store->disks().empty());
  EXPECT_EQ(store->counters().conversion_failures, 1u);
}

TEST_F(LayerStoreTest, BlobsAreTakenWithoutConversion) {
  auto store = *Open();
  const std::string blob = root_ + "/layer.erofs", large = root_ + "/large.erofs";
  std::ofstream(blob) << ImageOf("blob", 64 * kKiB);
  std::ofstream(large) << ImageOf("large", 9 * kMiB);
  EXPECT_EQ(Seen(*store->Place(Ask("s1", blob))), ImageOf("blob", 64 * kKiB));
  const Placement disk = *store->Place(Ask("s1", large));
  EXPECT_EQ(disk.image_path, large) << "no copy";
  EXPECT_TRUE(disk.reused);
  EXPECT_EQ(made_, 0);
  ASSERT_OK(store->ReleaseSandbox("s1"));
  ASSERT_OK(store->Gc(0));
  EXPECT_TRUE(std::filesystem::exists(large)) << "not ours to delete";
  EXPECT_TRUE(store->disks().empty());
  std::ofstream(blob) << ImageOf("other", 128 * kKiB);
  EXPECT_EQ(Seen(*store->Place(Ask("s2", blob))), ImageOf("other", 128 * kKiB))
      << "written again: another layer";
}

TEST_F(LayerStoreTest, ABlobThatChangedWithoutBeingWrittenIsNoLayer) {
  const std::string blob = root_ + "/blob.erofs", index = options_.dir + "/index.json";
  std::ofstream(blob) << ImageOf("blob", 9 * kMiB);
  const auto first = (*Open())->Place(Ask("s1", blob));
  ASSERT_OK(first);
  Damage(*first);  // which changes the file's times: the index learns them, as if they had not changed
  const auto fresh_key = [&] {
    const std::string dir = options_.dir;
    options_.dir = root_ + "/other";
    EXPECT_OK((*Open())->Place(Ask("s1", blob)));
    const auto content = IndexFile(FileSystem::Real(), options_.dir).Read();
    options_.dir = dir;
    return content->sources.begin()->first;
  }();
  auto content = IndexFile(FileSystem::Real(), options_.dir).Read();
  content->sources = {{fresh_key, first->layer_id}};
  std::ofstream(index) << EncodeIndex(*content);

  auto store = *Open();
  const auto again = store->Place(Ask("s2", blob));
  EXPECT_THAT(again, testing::HasStatus(StatusCode::kDataLoss));
  EXPECT_NE(again.status().message().find(blob), absl::string_view::npos) << again.status();
  EXPECT_EQ(store->disks().at(0).users, std::set<std::string>{"s1"}) << "it keeps what it has";
}

TEST_F(LayerStoreTest, RoomIsMadeFromTheIdleOnlyAndOldestFirst) {
  auto store = *Open();
  PlaceRequest request = Ask("s1", Layer("a", "a", 6 * kMiB));
  const Placement a = *store->Place(request);
  const auto next = [&](const std::string& sandbox, const std::string& name) {
    PlaceRequest more = Ask(sandbox, Layer(name, name, 6 * kMiB));
    more.attached_arenas = {{a.arena_id, a.arena_bytes}};
    more.free_arena_slots = 0;
    return *store->Place(more);
  };
  const Placement b = next("s2", "b");
  EXPECT_EQ(next("s3", "c").kind, PlacementKind::kScsi) << "both regions are mapped by the living";
  ASSERT_OK(store->ReleaseSandbox("s2"));
  ASSERT_OK(store->ReleaseSandbox("s1"));
  ASSERT_EQ(next("s4", "b").offset, b.offset);  // b is younger than a now
  ASSERT_OK(store->ReleaseSandbox("s4"));
  const Placement d = next("s5", "d");
  EXPECT_EQ(d.kind, PlacementKind::kVpmem);
  EXPECT_EQ(d.offset, a.offset);
  EXPECT_EQ(Seen(d), ImageOf("d", 6 * kMiB));
  EXPECT_EQ(store->counters().evictions, 1u);
}

TEST_F(LayerStoreTest, IdleBudgetAndGc) {
  options_.idle_budget_bytes = 5 * kMiB;
  auto store = *Open();
  for (const std::string name : {"a", "b", "c"}) {
    ASSERT_OK(store->Place(Ask("s-" + name, Layer(name, name, 2 * kMiB))));
    ASSERT_OK(store->ReleaseSandbox("s-" + name));
  }
  EXPECT_EQ(store->arenas()[0].held_bytes, 4 * kMiB);
  ASSERT_OK(store->Place(Ask("living", Layer("c", "c", 2 * kMiB))));
  EXPECT_EQ(*store->Gc(0), 2 * kMiB);
  EXPECT_EQ(store->arenas()[0].held_bytes, 2 * kMiB) << "what lives stays";
  struct stat info {};
  ASSERT_EQ(stat(store->arenas()[0].path.c_str(), &info), 0);
  EXPECT_LE(info.st_blocks * 512, static_cast<int64_t>(2 * kMiB + 64 * kKiB)) << "holes punched";
  ASSERT_OK(store->ReleaseSandbox("living"));
  EXPECT_EQ(*store->Gc(0), 2 * kMiB);
  EXPECT_TRUE(store->arenas().empty());
  EXPECT_EQ(Files(), std::set<std::string>{"index.json"});
}

TEST_F(LayerStoreTest, AtMostSoManyArenasPerDomain) {
  options_.max_arenas_per_domain = 1;
  auto store = *Open();
  for (const std::string name : {"a", "b", "c"}) {
    EXPECT_EQ(store->Place(Ask("s", Layer(name, name, 7 * kMiB)))->kind,
              name == "c" ? PlacementKind::kScsi : PlacementKind::kVpmem);
  }
  EXPECT_EQ(store->Place(Ask("s", Layer("d", "d", 7 * kMiB), "other"))->kind, PlacementKind::kVpmem);
}

TEST_F(LayerStoreTest, RestartKeepsRegionsUsersAndDisks) {
  const std::string small = Layer("a", "hello", 64 * kKiB), big = Layer("big", "big", 9 * kMiB);
  auto store = *Open();
  const Placement region = *store->Place(Ask("s1", small)), disk = *store->Place(Ask("s1", big));
  store.reset();
  std::ofstream(options_.dir + "/7.part") << "left by a conversion that died";
  store = *Open();
  EXPECT_EQ(Files().count("7.part"), 0u);
  EXPECT_EQ(store->arenas()[0].regions[0].users, std::set<std::string>{"s1"});
  EXPECT_EQ(store->Place(Ask("s2", small))->offset, region.offset);
  EXPECT_EQ(store->Place(Ask("s2", big))->image_path, disk.image_path);
  EXPECT_EQ(made_, 2);
  ASSERT_OK(store->RetainSandboxes({"s2"}));
  EXPECT_EQ(store->arenas()[0].regions[0].users, std::set<std::string>{"s2"});
  EXPECT_EQ(store->disks()[0].users, std::set<std::string>{"s2"});
}

TEST_F(LayerStoreTest, DamagedRegionIsRebuiltNeverMounted) {
  const std::string layer = Layer("a", "hello", 64 * kKiB);
  auto store = *Open();
  const Placement region = *store->Place(Ask("living", layer));
  store.reset();
  Damage(region);
  store = *Open();
  const Placement rebuilt = *store->Place(Ask("new", layer));
  EXPECT_EQ(Seen(rebuilt), ImageOf("hello", 64 * kKiB));
  EXPECT_NE(rebuilt.offset, region.offset) << "the living VM may have the old place mapped";
  EXPECT_EQ(store->counters().rebuilt, 1u);
  // Through another restart the old place stays taken, until its VM is gone.
  store.reset();
  store = *Open();
  EXPECT_EQ(store->arenas()[0].regions.size(), 2u);
  ASSERT_OK(store->ReleaseSandbox("living"));
  ASSERT_EQ(store->arenas()[0].regions.size(), 1u);
  EXPECT_EQ(store->arenas()[0].regions[0].offset, rebuilt.offset);
}

TEST_F(LayerStoreTest, AnotherSourceOfADamagedLayerIsNotTrustedEither) {
  const std::string a = Layer("a", "same", 64 * kKiB), b = Layer("b", "same", 64 * kKiB);
  auto store = *Open();
  const Placement region = *store->Place(Ask("s1", a));
  store.reset();
  Damage(region);
  store = *Open();
  EXPECT_EQ(Seen(*store->Place(Ask("s2", b))), ImageOf("same", 64 * kKiB));
}

TEST_F(LayerStoreTest, DamagedDiskIsRebuilt) {
  const std::string layer = Layer("big", "big", 9 * kMiB);
  auto store = *Open();
  const Placement disk = *store->Place(Ask("s1", layer));
  store.reset();
  Damage(disk);
  store = *Open();
  EXPECT_EQ(Seen(*store->Place(Ask("s2", layer))), ImageOf("big", 9 * kMiB));
  EXPECT_EQ(made_, 2);
  EXPECT_EQ(store->disks()[0].users, (std::set<std::string>{"s1", "s2"}));
}

// Of the placement's disk, as the guest will check it.
void ExpectTreeOf(const Placement& placement) {
  ASSERT_EQ(placement.kind, PlacementKind::kScsi);
  const std::string other = placement.tree_path + ".expected";
  const auto tree =
      MakeVerityTree({placement.image_path, placement.layer_id, placement.payload_bytes}, other);
  ASSERT_OK(tree);
  EXPECT_EQ(placement.tree.root_hash, tree->root_hash);
  EXPECT_EQ(placement.tree.bytes, tree->bytes);
  ASSERT_EQ(std::filesystem::file_size(placement.tree_path), tree->bytes);
  EXPECT_EQ(*DigestOf(placement.tree_path, 0, tree->bytes), *DigestOf(other, 0, tree->bytes));
  std::filesystem::remove(other);
}

TEST_F(LayerStoreTest, DisksHaveHashTreesWhenAskedFor) {
  options_.scsi_verity = true;
  auto store = *Open();
  const std::string big = Layer("big", "big", 9 * kMiB);
  const auto first = store->Place(Ask("s1", big));
  ASSERT_OK(first);
  ExpectTreeOf(*first);
  const auto made = std::filesystem::last_write_time(first->tree_path);
  const auto second = store->Place(Ask("s2", big));
  ASSERT_OK(second);
  ExpectTreeOf(*second);
  EXPECT_EQ(std::filesystem::last_write_time(first->tree_path), made) << "one tree for all";
  ASSERT_EQ(store->disks().size(), 1u);
  EXPECT_EQ(store->disks()[0].root_hash, first->tree.root_hash);
  const auto small = store->Place(Ask("s1", Layer("small", "small", 64 * kKiB)));
  ASSERT_OK(small);
  EXPECT_EQ(small->tree_path, "") << "an arena's regions have none";
  // Nothing but the root that the guest is told makes a tree good: one of an earlier process is replaced.
  store.reset();
  std::ofstream(first->tree_path) << "damage";
  store = *Open();
  EXPECT_EQ(store->disks()[0].root_hash, "");
  const auto again = store->Place(Ask("s3", big));
  ASSERT_OK(again);
  ExpectTreeOf(*again);
  for (const char* sandbox : {"s1", "s2", "s3"}) ASSERT_OK(store->ReleaseSandbox(sandbox));
  ASSERT_OK(store->Gc(0));
  EXPECT_EQ(Files(), std::set<std::string>{"index.json"});
}

TEST_F(LayerStoreTest, ATreeBelongsToAllDisksOfItsContent) {
  options_.scsi_verity = true;
  auto store = *Open();
  std::vector<Placement> placed;
  for (const std::string name : {"a", "b"}) {
    const std::string blob = root_ + "/" + name + ".erofs";
    std::ofstream(blob) << ImageOf("same", 9 * kMiB);
    const auto placement = store->Place(Ask("s-" + name, blob));
    ASSERT_OK(placement);
    EXPECT_EQ(placement->image_path, blob);
    placed.push_back(*placement);
  }
  EXPECT_EQ(placed[0].tree_path, placed[1].tree_path);
  ASSERT_OK(store->ReleaseSandbox("s-a"));
  ExpectTreeOf(placed[1]);
  ASSERT_OK(store->ReleaseSandbox("s-b"));
  EXPECT_EQ(Files(), std::set<std::string>{"index.json"});
  EXPECT_TRUE(std::filesystem::exists(placed[0].image_path)) << "the blobs are the snapshotter's";
}

TEST_F(LayerStoreTest, TreesOfAnEarlierConfigurationGo) {
  options_.scsi_verity = true;
  const std::string big = Layer("big", "big", 9 * kMiB);
  ASSERT_OK((*Open())->Place(Ask("s1", big)));
  options_.scsi_verity = false;
  auto store = *Open();
  const auto placement = store->Place(Ask("s1", big));
  ASSERT_OK(placement);
  EXPECT_EQ(placement->tree_path, "");
  EXPECT_EQ(Files(), (std::set<std::string>{"index.json", placement->layer_id + ".erofs"}));
}

TEST_F(LayerStoreTest, ADamagedDiskIsRebuiltWithItsTree) {
  options_.scsi_verity = true;
  const std::string big = Layer("big", "big", 9 * kMiB);
  const auto first = (*Open())->Place(Ask("s1", big));
  ASSERT_OK(first);
  Damage(*first);
  auto store = *Open();
  const auto second = store->Place(Ask("s1", big));
  ASSERT_OK(second);
  ExpectTreeOf(*second);
  EXPECT_EQ(second->tree.root_hash, first->tree.root_hash);
}

TEST_F(LayerStoreTest, ForeignIndexesAreLeftUntouched) {
  auto store = *Open();
  ASSERT_OK(store->Place(Ask("s1", Layer("a", "hello", 64 * kKiB))));
  store.reset();
  const std::string path = options_.dir + "/index.json";
  const std::string good = *FileSystem::Real().Read(path, 1 << 20);
  const auto open_with = [&](const std::string& content) {
    std::ofstream(path, std::ios::trunc) << content;
    const absl::Status status = Open().status();
    EXPECT_EQ(*FileSystem::Real().Read(path, 1 << 20), content);
    EXPECT_EQ(Files().count("arena-1.arena"), 1u);
    return status.code();
  };
  EXPECT_EQ(open_with(EncodeFrame({"index", 3, 4}, "{}")), StatusCode::kFailedPrecondition);
  EXPECT_EQ(open_with(EncodeFrame({"index", 2, 2}, "{}")), StatusCode::kDataLoss);
  EXPECT_EQ(open_with(EncodeFrame({"index", 3, 3}, "[]")), StatusCode::kDataLoss);
  EXPECT_EQ(open_with("{}"), StatusCode::kDataLoss);
  EXPECT_EQ(open_with("{\"arenas\":[]}"), StatusCode::kDataLoss) << "without a checksum nothing is believed";
  std::string flipped = good;
  flipped[flipped.find("\"offset\":0")] = '\'';
  EXPECT_EQ(open_with(flipped), StatusCode::kDataLoss);
  std::string moved = good;
  moved.replace(moved.find("\"offset\":0"), 10, "\"offset\":4");
  EXPECT_EQ(open_with(moved), StatusCode::kDataLoss) << "still JSON, no longer what was written";
  EXPECT_EQ(open_with(good.substr(0, good.size() / 2)), StatusCode::kDataLoss);
  EXPECT_EQ(open_with("[]"), StatusCode::kDataLoss);
  EXPECT_EQ(open_with(""), StatusCode::kDataLoss);
  EXPECT_EQ(open_with(good), StatusCode::kOk);
}

TEST_F(LayerStoreTest, ManyThreadsKeepEveryLivingRegionIntact) {
  options_.arena_bytes = 8 * kMiB;
  options_.idle_budget_bytes = 2 * kMiB;
  options_.max_arenas_per_domain = 2;
  auto store = *Open();
  std::vector<std::string> layers;
  for (int i = 0; i < 12; ++i)
    layers.push_back(Layer("l" + std::to_string(i), "c" + std::to_string(i), (1 + i % 4) * kMiB));
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      for (int round = 0; round < 12; ++round) {
        const std::string sandbox = "s" + std::to_string(t) + "-" + std::to_string(round);
        std::vector<std::pair<Placement, std::string>> mine;
        for (int i = 0; i < 3; ++i) {
          const size_t which = random() % layers.size();
          const auto placed = store->Place(Ask(sandbox, layers[which], t % 2 == 0 ? "even" : "odd"));
          if (!placed.ok()) {
            ++wrong;
            ADD_FAILURE() << placed.status();
            continue;
          }
          mine.emplace_back(*placed, ImageOf("c" + std::to_string(which), (1 + which % 4) * kMiB));
        }
        for (const auto& [placement, expected] : mine) wrong += Seen(placement) != expected;
        if (!store->ReleaseSandbox(sandbox).ok()) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  ASSERT_OK(store->Gc(0));
  EXPECT_TRUE(store->arenas().empty());
  EXPECT_TRUE(store->disks().empty());
  EXPECT_EQ(Files(), std::set<std::string>{"index.json"});
}

}  // namespace
}  // namespace lamina::layers
