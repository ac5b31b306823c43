// Each call on an arena's file fails once, and each is the last one of a process.
#include "tests/testing/status_matchers.h"
#include "tests/unit/layers/store_fixture.h"

namespace lamina::layers {
namespace {

class ArenaFaultTest : public StoreFixture {
 protected:
  ArenaFaultTest() {
    options_.arena_bytes = 4 * kMiB;
    options_.max_layer_bytes = 2 * kMiB;
  }
  static constexpr uint64_t kLayer = 1280 * kKiB;  // three to an arena
  // Makes, fills, copies out of, evicts from, packs and removes arenas. True when all succeeded.
  bool Live(LayerStore& store) {
    bool ok = true;
    const auto place = [&](const std::string& sandbox, const std::string& name, const std::string& domain) {
      ok = store.Place(Ask(sandbox, Layer(name, name, kLayer), domain)).ok() && ok;
    };
    place("s1", "a", "ns1");
    place("s1", "b", "ns1");
    place("s2", "b", "ns2");
    place("s3", "c", "ns1");
    place("s3", "d", "ns1");
    for (const char* sandbox : {"s1", "s3"}) ok = store.ReleaseSandbox(sandbox).ok() && ok;
    ok = store.Gc(2 * kLayer).ok() && ok;
    ok = store.Pack().ok() && ok;
    PlaceRequest last = Ask("s4", Layer("e", "e", 1792 * kKiB), "ns1");
    last.free_arena_slots = 1;
    ok = store.Place(last).ok() && ok;
    ok = store.ReleaseSandbox("s4").ok() && ok;
    return store.Gc(0).ok() && ok;
  }
  // The sandbox that lives through it all has its layer, now and after a restart; all else can be given up.
  void ExpectGood(std::unique_ptr<LayerStore> store, int step) {
    EXPECT_TRUE(Live(*store)) << step;
    const auto placed = store->Place(Ask("s2", Layer("b", "b", kLayer), "ns2"));
    ASSERT_OK(placed) << step;
    EXPECT_EQ(Seen(*placed), ImageOf("b", kLayer)) << step;
    store.reset();
    store = *Open();
    ASSERT_EQ(store->arenas().size(), 1u) << step;
    EXPECT_EQ(store->arenas()[0].regions.at(0).users, std::set<std::string>{"s2"}) << step;
    ASSERT_OK(store->ReleaseSandbox("s2"));
    ASSERT_OK(store->Gc(0));
    EXPECT_EQ(Files(), std::set<std::string>{"index.json"}) << step;
  }
};

TEST_F(ArenaFaultTest, EveryCallFailsOnce) {
  bool clean = false;
  for (int fail_at = 0; !clean; ++fail_at) {
    ASSERT_LT(fail_at, 200);
    options_.dir = root_ + "/store" + std::to_string(fail_at);
    HookedArenaFiles files;
    std::atomic<int> calls = 0;
    files.before = [&](const std::string& call) {
      if (calls++ == fail_at) return absl::ResourceExhaustedError("injected: no space left to " + call);
      return absl::OkStatus();
    };
    auto store = *Open(FileSystem::Real(), files);
    Live(*store);
    clean = calls <= fail_at;
    files.before = [](const std::string&) { return absl::OkStatus(); };
    ExpectGood(std::move(store), fail_at);
  }
}

TEST_F(ArenaFaultTest, EveryCallIsTheLast) {
  bool clean = false;
  for (int last = 0; !clean; ++last) {
    ASSERT_LT(last, 200);
    options_.dir = root_ + "/store" + std::to_string(last);
    HookedArenaFiles files;
    FaultyFileSystem faulty(FileSystem::Real());
    std::atomic<int> calls = 0;
    // From then on nothing reaches the disk.
    files.before = [&](const std::string& call) {
      if (calls++ < last) return absl::OkStatus();
      faulty.fail_at = faulty.calls.load();
      return absl::ResourceExhaustedError("dead before " + call);
    };
    {
      auto store = *Open(faulty, files);
      Live(*store);
      clean = calls <= last;
    }
    std::ofstream(options_.dir + "/99.part") << "left by a conversion";
    ExpectGood(*Open(), last);
  }
}

}  // namespace
}  // namespace lamina::layers
