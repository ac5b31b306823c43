// Containers' layers placed together, windows on arenas, packing.
#include <barrier>
#include <latch>
#include <thread>

#include "layers/erofs_image.h"
#include "tests/testing/status_matchers.h"
#include "tests/unit/layers/store_fixture.h"

namespace lamina::layers {
namespace {

using absl::StatusCode;

class LayerSetTest : public StoreFixture {
 protected:
  std::vector<std::string> Layers(int n, uint64_t bytes, const std::string& kind = "layer") {
    std::vector<std::string> sources;
    for (int i = 0; i < n; ++i) {
      const std::string name = kind + std::to_string(i);
      sources.push_back(Layer(name, name, bytes));
    }
    return sources;
  }
  static std::set<std::string> UsersOf(LayerStore& store) {
    std::set<std::string> users;
    for (const ArenaInfo& arena : store.arenas()) {
      for (const RegionInfo& region : arena.regions) users.insert(region.users.begin(), region.users.end());
    }
    for (const DiskInfo& disk : store.disks()) users.insert(disk.users.begin(), disk.users.end());
    return users;
  }
};

TEST_F(LayerSetTest, InTheOrderAsked) {
  auto store = *Open();
  std::vector<std::string> sources = Layers(20, 64 * kKiB);
  sources.push_back(sources[3]);  // an image may name a layer twice
  const auto placed = store->PlaceAll(Ask("s", ""), sources);
  ASSERT_OK(placed);
  ASSERT_EQ(placed->size(), 21u);
  for (int i = 0; i < 20; ++i)
    EXPECT_EQ(Seen((*placed)[i]), ImageOf("layer" + std::to_string(i), 64 * kKiB)) << i;
  EXPECT_EQ((*placed)[20].offset, (*placed)[3].offset);
  EXPECT_EQ(made_, 20);
  EXPECT_EQ(store->counters().placed_vpmem, 20u);
}

TEST_F(LayerSetTest, DifferentLayersAreConvertedAtTheSameTimeButNoMoreThanAllowed) {
  options_.max_conversions = 3;
  std::barrier all(3);  // each third conversion ends only when two others have begun
  std::atomic<int> running = 0, most = 0;
  auto store =
      *LayerStore::Open(FileSystem::Real(), options_,
                        [&](const std::string& d, const std::string& p, uint64_t, const std::stop_token&) {
                          const int now = ++running;
                          for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
                          }
                          all.arrive_and_wait();
                          auto image = Make(d, p);
                          --running;
                          return image;
                        });
  // Two containers of different pods share the node's limit.
  std::thread other([&] { EXPECT_OK(store->PlaceAll(Ask("t", ""), Layers(3, 64 * kKiB, "other"))); });
  EXPECT_OK(store->PlaceAll(Ask("s", ""), Layers(6, 64 * kKiB)));
  other.join();
  EXPECT_EQ(most, 3);
  EXPECT_TRUE(store->conversions().empty());
}

TEST_F(LayerSetTest, AFailureTakesBackWhatTheContainerGotAndNothingElse) {
  auto store = *Open();
  std::vector<std::string> sources = Layers(6, 64 * kKiB);
  ASSERT_OK(store->PlaceAll(Ask("s", ""), {sources[0]}));
  std::filesystem::remove(sources[4] + "/content");
  const std::string big = Layer("big", "big", 9 * kMiB);
  sources.push_back(big);
  const auto failed = store->PlaceAll(Ask("s", ""), sources);
  EXPECT_THAT(failed, testing::HasStatus(StatusCode::kInternal));
  EXPECT_NE(failed.status().message().find(sources[4]), absl::string_view::npos) << failed.status();
  EXPECT_NE(failed.status().message().find("no content"), absl::string_view::npos) << failed.status();
  size_t used = 0;
  for (const ArenaInfo& arena : store->arenas()) {
    for (const RegionInfo& region : arena.regions) used += region.users.size();
  }
  EXPECT_EQ(used, 1u) << "what an earlier container of the pod uses stays used";
  for (const DiskInfo& disk : store->disks()) EXPECT_TRUE(disk.users.empty());
  // Nothing is in the way of another try.
  std::ofstream(sources[4] + "/content") << 64 * kKiB << " again";
  EXPECT_OK(store->PlaceAll(Ask("s", ""), sources));
}

TEST_F(LayerSetTest, TogetherTheyTakeNoMoreSlotsThanThereAre) {
  auto store = *Open();
  PlaceRequest request = Ask("s", "");
  request.free_arena_slots = 2;
  const auto placed = store->PlaceAll(request, Layers(6, 7 * kMiB));  // two to an arena of 16 MiB
  ASSERT_OK(placed);
  std::set<std::string> arenas;
  int disks = 0;
  for (const Placement& placement : *placed) {
    if (placement.kind == PlacementKind::kVpmem)
      arenas.insert(placement.arena_id);
    else
      ++disks;
  }
  EXPECT_EQ(arenas.size(), 2u);
  EXPECT_EQ(disks, 2);
  for (const DiskInfo& disk : store->disks()) EXPECT_NE(disk.why.find("no device slot"), std::string::npos);
}

TEST_F(LayerSetTest, AHundredAndTwentyLayersOfWhichManyAreEqual) {
  auto store = *Open();
  std::vector<std::string> sources;
  for (int i = 0; i < 120; ++i)
    sources.push_back(Layer("many" + std::to_string(i), "content" + std::to_string(i / 2), 8 * kKiB));
  const auto placed = store->PlaceAll(Ask("s", ""), sources);
  ASSERT_OK(placed);
  for (int i = 0; i < 120; i += 2) EXPECT_EQ((*placed)[i].offset, (*placed)[i + 1].offset);
  ASSERT_EQ(store->arenas().size(), 1u);
  EXPECT_EQ(store->arenas()[0].regions.size(), 60u);
}

TEST_F(LayerSetTest, AThousandAndTwentyFourRegionsOfOneArena) {
  auto store = *Open();
  const auto placed = store->PlaceAll(Ask("s", ""), Layers(1024, 8 * kKiB));
  ASSERT_OK(placed);
  std::set<uint64_t> offsets;
  for (const Placement& placement : *placed) {
    EXPECT_EQ(placement.arena_id, "arena-1");
    EXPECT_TRUE(offsets.insert(placement.offset).second);
  }
  auto again = *Open();
  EXPECT_EQ(again->arenas()[0].regions.size(), 1024u);
  ASSERT_OK(again->ReleaseSandbox("s"));
  EXPECT_EQ(*again->Gc(0), 1024 * 8 * kKiB);
}

TEST_F(LayerSetTest, ASnapshotRemovedWhileItIsConvertedIsNoLayer) {
  auto store =
      *LayerStore::Open(FileSystem::Real(), options_,
                        [&](const std::string& d, const std::string& p, uint64_t, const std::stop_token&) {
                          auto image = Make(d, p);
                          std::filesystem::remove_all(d);
                          return image;
                        });
  const auto placed = store->Place(Ask("s", Layer("a", "aaa", 64 * kKiB)));
  EXPECT_THAT(placed, testing::HasStatus(StatusCode::kNotFound));
  EXPECT_NE(placed.status().message().find("was removed while"), absl::string_view::npos);
  EXPECT_THAT(store->Place(Ask("s", root_ + "/layers/a")), testing::HasStatus(StatusCode::kNotFound));
  ASSERT_OK(store->Gc(0));
  EXPECT_EQ(Files(), std::set<std::string>{"index.json"});
}

TEST_F(LayerSetTest, ProgressIsSeenWhileALayerIsConverted) {
  std::latch written(1), go(1);
  auto store =
      *LayerStore::Open(FileSystem::Real(), options_,
                        [&](const std::string& d, const std::string& p, uint64_t, const std::stop_token&) {
                          std::ofstream(p) << std::string(100'000, 'x') << std::flush;
                          written.count_down();
                          go.wait();
                          return Make(d, p);
                        });
  const std::string layer = Layer("a", "aaa", 64 * kKiB);
  std::thread placing([&] { EXPECT_OK(store->Place(Ask("s", layer))); });
  written.wait();
  const std::vector<ConversionInfo> now = store->conversions();
  ASSERT_EQ(now.size(), 1u);
  EXPECT_EQ(now[0].source, layer);
  EXPECT_EQ(now[0].bytes, 100'000u);
  EXPECT_EQ(store->counters().converting, 1u);
  go.count_down();
  placing.join();
  EXPECT_TRUE(store->conversions().empty());
}

TEST_F(LayerSetTest, AWindowIsAsLargeAsThePodNeeds) {
  options_.arena_bytes = 1024 * kMiB;
  options_.max_layer_bytes = 512 * kMiB;
  auto store = *Open();
  const auto first = *store->PlaceAll(Ask("s1", ""), {Layer("a", "a", 2 * kMiB), Layer("b", "b", 3 * kMiB)});
  for (const Placement& placement : first) EXPECT_EQ(placement.arena_bytes, 64 * kMiB);
  const Placement c = *store->Place(Ask("s2", Layer("c", "c", 62 * kMiB)));
  EXPECT_EQ(c.arena_id, first[0].arena_id);
  EXPECT_EQ(c.arena_bytes, 128 * kMiB) << "it lies behind the others";
  EXPECT_EQ(store->arenas()[0].window_bytes, 128 * kMiB);

  // s1 sees 64 MiB. What lies in them costs it nothing; c costs it a further window, if it can have one.
  PlaceRequest more = Ask("s1", "");
  more.attached_arenas = {{c.arena_id, 64 * kMiB}};
  more.free_arena_slots = 0;
  EXPECT_EQ((*store->PlaceAll(more, {root_ + "/layers/a"}))[0].arena_bytes, 64 * kMiB);
  EXPECT_EQ((*store->PlaceAll(more, {root_ + "/layers/c"}))[0].kind, PlacementKind::kScsi);
  more.free_arena_slots = 1;
  const auto both = *store->PlaceAll(more, {root_ + "/layers/c", root_ + "/layers/a"});
  EXPECT_EQ(both[0].kind, PlacementKind::kVpmem);
  EXPECT_EQ(both[0].arena_bytes, 128 * kMiB);
  EXPECT_EQ(both[1].kind, PlacementKind::kVpmem);
  // Windows on one arena double at least.
  more.attached_arenas = {{c.arena_id, 128 * kMiB}};
  const Placement d = *store->Place([&] {
    PlaceRequest request = more;
    request.source = Layer("d", "d", 70 * kMiB);
    return request;
  }());
  EXPECT_EQ(d.arena_id, c.arena_id);
  EXPECT_EQ(d.arena_bytes, 256 * kMiB);
}

TEST_F(LayerSetTest, PackEmptiesArenasThatNobodyUses) {
  auto store = *Open();
  // Three arenas of 16 MiB, two layers each; then the second one of two of them goes, one of which is in use.
  std::vector<Placement> placed;
  for (int i = 0; i < 6; ++i) {
    const std::string name = "l" + std::to_string(i);
    PlaceRequest request = Ask("s" + std::to_string(i), Layer(name, name, 7 * kMiB));
    placed.push_back(*store->Place(request));
  }
  ASSERT_EQ(store->arenas().size(), 3u);
  for (const int i : {3, 5}) ASSERT_OK(store->ReleaseSandbox("s" + std::to_string(i)));
  ASSERT_EQ(*store->Gc(0), 14 * kMiB);
  for (const int i : {0, 1, 4}) ASSERT_OK(store->ReleaseSandbox("s" + std::to_string(i)));
  const auto before = store->arenas();
  const auto packed = store->Pack();
  ASSERT_OK(packed);
  EXPECT_EQ(store->arenas().size(), before.size() - packed->removed_arenas);
  EXPECT_EQ(packed->removed_arenas, 1u);
  EXPECT_EQ(packed->moved_layers, 1u);
  EXPECT_EQ(packed->moved_bytes, 7 * kMiB);
  bool still = false;
  std::set<std::string> layers;
  for (const ArenaInfo& arena : store->arenas()) {
    for (const RegionInfo& region : arena.regions) {
      EXPECT_TRUE(layers.insert(region.layer_id).second) << "one copy";
      still = still || (region.layer_id == placed[2].layer_id && region.offset == placed[2].offset &&
                        arena.id == placed[2].arena_id);
    }
  }
  EXPECT_TRUE(still) << "what is used does not move";
  // What was moved is whole, and known after a restart without another conversion.
  const int made = made_;
  auto again = *Open();
  for (int i = 0; i < 6; ++i) {
    if (layers.count(placed[i].layer_id) == 0) continue;
    const Placement now = *again->Place(Ask("t", root_ + "/layers/l" + std::to_string(i)));
    EXPECT_EQ(Seen(now), ImageOf("l" + std::to_string(i), 7 * kMiB));
  }
  EXPECT_EQ(made_, made);
}

TEST_F(LayerSetTest, PackLeavesDomainsApartAndWhatDoesNotFit) {
  auto store = *Open();
  ASSERT_OK(store->Place(Ask("a", Layer("a", "a", 2 * kMiB), "ns1")));
  ASSERT_OK(store->Place(Ask("b", Layer("b", "b", 2 * kMiB), "ns2")));
  ASSERT_OK(store->ReleaseSandbox("a"));
  ASSERT_OK(store->ReleaseSandbox("b"));
  const auto packed = store->Pack();
  ASSERT_OK(packed);
  EXPECT_EQ(packed->moved_layers, 0u);
  EXPECT_EQ(store->arenas().size(), 2u);
}

TEST_F(LayerSetTest, PackMovesNoDamage) {
  auto store = *Open();
  std::vector<Placement> placed;
  for (int i = 0; i < 3; ++i) {
    const std::string name = "l" + std::to_string(i);
    placed.push_back(*store->Place(Ask(name, Layer(name, name, 7 * kMiB))));
  }
  ASSERT_EQ(store->arenas().size(), 2u);
  for (const std::string name : {"l0", "l2"}) ASSERT_OK(store->ReleaseSandbox(name));
  ASSERT_OK(store->Gc(7 * kMiB));  // l0 goes: room beside l1
  Damage(placed[2]);
  const auto packed = store->Pack();
  ASSERT_OK(packed);
  EXPECT_EQ(packed->moved_layers, 0u);
  ASSERT_EQ(store->arenas().size(), 1u);
  EXPECT_EQ(store->arenas()[0].regions.size(), 1u)
      << "the damaged one is dropped, and rebuilt when it is asked for";
  EXPECT_EQ(Seen(*store->Place(Ask("t", root_ + "/layers/l2"))), ImageOf("l2", 7 * kMiB));
}

TEST_F(LayerSetTest, PackWhilePodsComeAndGo) {
  options_.max_conversions = 4;
  auto store = *Open();
  const std::vector<std::string> sources = Layers(12, kMiB);
  std::atomic<bool> stop = false;
  std::thread packer([&] {
    while (!stop) EXPECT_OK(store->Pack());
  });
  std::vector<std::thread> pods;
  for (int t = 0; t < 3; ++t) {
    pods.emplace_back([&, t] {
      for (int i = 0; i < 40; ++i) {
        const std::string pod = "p" + std::to_string(t);
        const std::vector<std::string> mine = {sources[(i + t) % 12], sources[(i * 5 + t) % 12]};
        const auto placed = store->PlaceAll(Ask(pod, ""), mine);
        ASSERT_OK(placed);
        for (const Placement& placement : *placed) EXPECT_EQ(Seen(placement).size(), kMiB);
        EXPECT_EQ(Seen((*placed)[0]), ImageOf("layer" + std::to_string((i + t) % 12), kMiB));
        ASSERT_OK(store->ReleaseSandbox(pod));
        if (i % 10 != 0) continue;
        ASSERT_OK(store->Gc(4 * kMiB));
      }
    });
  }
  for (std::thread& pod : pods) pod.join();
  stop = true;
  packer.join();
  ASSERT_OK(store->Gc(0));
  EXPECT_TRUE(store->arenas().empty());
  EXPECT_EQ(Files(), std::set<std::string>{"index.json"});
}

// mkfs.erofs writes holes as zeros, so that 5 GiB take minutes: here the image is as sparse as its layer.
TEST_F(LayerSetTest, ALayerOfFiveGibibytesIsADisk) {
  options_.arena_bytes = 1024 * kMiB;
  options_.max_layer_bytes = 512 * kMiB;
  const std::string digest(64, '5');
  auto store = *LayerStore::Open(FileSystem::Real(), options_,
                                 [&](const std::string&, const std::string& path, uint64_t,
                                     const std::stop_token&) -> absl::StatusOr<Image> {
                                   std::ofstream(path) << "image";
                                   std::filesystem::resize_file(path, 5 * kGiB);
                                   return Image{path, digest, 5 * kGiB};
                                 });
  for (const char* pod : {"s1", "s2"}) {
    const auto placed = store->Place(Ask(pod, Layer("large", "large", 1)));
    ASSERT_OK(placed);
    EXPECT_EQ(placed->kind, PlacementKind::kScsi);
    EXPECT_NE(placed->why_scsi.find("5GiB is over the maximum layer size"), std::string::npos);
    EXPECT_EQ(std::filesystem::file_size(placed->image_path), 5 * kGiB);
  }
  EXPECT_EQ(store->disks()[0].users.size(), 2u);
  EXPECT_EQ(Open().value()->disks()[0].why, store->disks()[0].why) << "the reason survives a restart";
}

// With mkfs.erofs itself.
class RealImagesTest : public StoreFixture {
 protected:
  absl::StatusOr<std::unique_ptr<LayerStore>> OpenReal() {
    return LayerStore::Open(FileSystem::Real(), options_);
  }
};

TEST_F(RealImagesTest, AnEmptyLayerIsALayer) {
  auto store = *OpenReal();
  std::filesystem::create_directories(root_ + "/empty1");
  std::filesystem::create_directories(root_ + "/empty2");
  const auto placed = store->PlaceAll(Ask("s", ""), {root_ + "/empty1", root_ + "/empty2"});
  ASSERT_OK(placed);
  EXPECT_EQ((*placed)[0].kind, PlacementKind::kVpmem);
  EXPECT_GT((*placed)[0].payload_bytes, 0u);
  std::ofstream(root_ + "/image") << Seen((*placed)[0]);
  EXPECT_OK(ExamineErofsImage(root_ + "/image"));
}

// A million of them: layers_bench --files 1000000.
TEST_F(RealImagesTest, VeryManySmallFiles) {
  options_.arena_bytes = 256 * kMiB;
  options_.max_layer_bytes = 128 * kMiB;
  auto store = *OpenReal();
  const std::string layer = root_ + "/many";
  constexpr int kFiles = 3'000;
  for (int i = 0; i < kFiles; ++i) {
    const std::string folder = layer + "/" + std::to_string(i / 1000);
    if (i % 1000 == 0) std::filesystem::create_directories(folder);
    std::ofstream(folder + "/" + std::to_string(i)) << i;
  }
  const auto placed = store->Place(Ask("s", layer));
  ASSERT_OK(placed);
  EXPECT_EQ(placed->kind, PlacementKind::kVpmem);
  EXPECT_GE(placed->payload_bytes, kFiles * 4096u) << "each file's data in a page of its own";
}

}  // namespace
}  // namespace lamina::layers
