// A disk that does not answer holds up whoever asked it, and nobody else.
#include <chrono>
#include <future>
#include <latch>
#include <thread>

#include "tests/testing/status_matchers.h"
#include "tests/unit/layers/store_fixture.h"

namespace lamina::layers {
namespace {

// The one call that was asked for waits for Go(); the test waits for it to be reached.
class Gate {
 public:
  void Pass(const std::string& call) {
    if (call != awaited_ || reached_.exchange(true)) return;
    at_.count_down();
    go_.wait();
  }
  void Arm(const std::string& call) { awaited_ = call; }
  void WaitUntilReached() { at_.wait(); }
  void Go() { go_.count_down(); }

 private:
  std::string awaited_;
  std::atomic<bool> reached_ = false;
  std::latch at_{1}, go_{1};
};

class GatedFileSystem : public FaultyFileSystem {
 public:
  explicit GatedFileSystem(Gate& gate) : FaultyFileSystem(FileSystem::Real()), gate_(gate) {}
  std::atomic<int> writes = 0;
  absl::Status WriteAndSync(const std::string& path, std::string_view data, int mode) override {
    ++writes;
    gate_.Pass("write the index");
    return FileSystem::Real().WriteAndSync(path, data, mode);
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    if (to.ends_with(".erofs")) gate_.Pass("put a disk in place");
    return FileSystem::Real().Rename(from, to);
  }
  absl::Status SyncDirectory(const std::string& path) override {
    return FileSystem::Real().SyncDirectory(path);
  }
  absl::Status Remove(const std::string& path) override {
    if (path.ends_with(".erofs")) gate_.Pass("remove a disk");
    if (path.ends_with(".arena")) gate_.Pass("remove an arena");
    return FileSystem::Real().Remove(path);
  }

 private:
  Gate& gate_;
};

class LayerStoreBlockingTest : public StoreFixture, public ::testing::WithParamInterface<const char*> {
 protected:
  LayerStoreBlockingTest() : fs_(gate_) {
    files_.before = [this](const std::string& call) {
      gate_.Pass(call);
      return absl::OkStatus();
    };
  }

  Gate gate_;
  GatedFileSystem fs_;
  HookedArenaFiles files_;
};

TEST_P(LayerStoreBlockingTest, OthersGoOn) {
  const std::string blocked = GetParam();
  auto store = *Open(fs_, files_);
  const std::string small = Layer("small", "small", kMiB), big = Layer("big", "big", 9 * kMiB),
                    kept = Layer("kept", "kept", kMiB);
  const bool drops = blocked == "punch" || blocked == "remove a disk" || blocked == "remove an arena";
  if (blocked != "create") {
    ASSERT_OK(store->Place(Ask("living", kept)));
  }
  if (drops) {
    ASSERT_OK(store->Place(Ask("gone", blocked == "remove a disk" ? big : small,
                               blocked == "remove an arena" ? "elsewhere" : "ns")));
    ASSERT_OK(store->ReleaseSandbox("gone"));
  }
  gate_.Arm(blocked);
  auto stuck = std::async(std::launch::async, [&] {
    if (drops) return store->Gc(0).status();
    return store->Place(Ask("stuck", blocked == "put a disk in place" ? big : small)).status();
  });
  gate_.WaitUntilReached();
  auto others = std::async(std::launch::async, [&] {
    store->arenas();
    store->disks();
    store->counters();
    store->ArenasOf("ns", 4);
    if (blocked == "write the index") return absl::OkStatus();  // whoever changes something writes it
    RETURN_IF_ERROR(store->Place(Ask("other", Layer("other", "other", kMiB), "other")).status());
    if (blocked == "create") return absl::OkStatus();
    // In the very arena, too.
    RETURN_IF_ERROR(store->Place(Ask("beside", Layer("beside", "beside", kMiB))).status());
    RETURN_IF_ERROR(store->Place(Ask("third", kept)).status());
    return store->ReleaseSandbox("third");
  });
  EXPECT_EQ(others.wait_for(std::chrono::seconds(60)), std::future_status::ready)
      << "they wait for: " << blocked;
  gate_.Go();
  EXPECT_OK(others.get());
  EXPECT_OK(stuck.get());
  for (const char* sandbox : {"living", "stuck", "other", "beside"})
    ASSERT_OK(store->ReleaseSandbox(sandbox));
  ASSERT_OK(store->Gc(0));
  EXPECT_EQ(Files(), std::set<std::string>{"index.json"});
}

INSTANTIATE_TEST_SUITE_P(EachCall, LayerStoreBlockingTest,
                         ::testing::Values("create", "copy in", "punch", "put a disk in place",
                                           "remove a disk", "remove an arena", "write the index"));

using LayerStoreIndexTest = LayerStoreBlockingTest;

TEST_F(LayerStoreIndexTest, ManyChangesWhileTheIndexIsWrittenAreOneWrite) {
  auto store = *Open(fs_, files_);
  const std::string layer = Layer("a", "aaa", 64 * kKiB);
  ASSERT_OK(store->Place(Ask("first", layer)));
  const int before = fs_.writes;
  gate_.Arm("write the index");
  std::vector<std::future<absl::Status>> placed;
  const auto place = [&](int i) {
    placed.push_back(std::async(std::launch::async, [&store, this, layer, i] {
      return store->Place(Ask("s" + std::to_string(i), layer)).status();
    }));
  };
  place(0);
  gate_.WaitUntilReached();
  for (int i = 1; i < 9; ++i) place(i);
  // In memory all are users before the first write has ended.
  while (store->arenas()[0].regions[0].users.size() < 10) std::this_thread::yield();
  gate_.Go();
  for (auto& one : placed) EXPECT_OK(one.get());
  EXPECT_EQ(fs_.writes - before, 2);
  store.reset();
  EXPECT_EQ((*Open())->arenas()[0].regions[0].users.size(), 10u);
}

TEST_F(LayerStoreIndexTest, RoomThatIsBeingPunchedIsWaitedFor) {
  auto store = *Open(fs_, files_);
  const std::string a = Layer("a", "aaa", 7 * kMiB), b = Layer("b", "bbb", 7 * kMiB);
  const Placement first = *store->Place(Ask("s1", a));
  ASSERT_OK(store->Place(Ask("s2", b)));
  ASSERT_OK(store->ReleaseSandbox("s1"));
  gate_.Arm("punch");
  auto dropping = std::async(std::launch::async, [&] { return store->Gc(0).status(); });
  gate_.WaitUntilReached();
  // The arena is full but for what is being punched, and the VM can take no other.
  PlaceRequest request = Ask("s3", Layer("c", "ccc", 7 * kMiB));
  request.attached_arenas = {{first.arena_id, first.arena_bytes}};
  request.free_arena_slots = 0;
  PlaceRequest hurried = request;
  hurried.patience.deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
  EXPECT_THAT(store->Place(hurried), testing::HasStatus(absl::StatusCode::kDeadlineExceeded, "/layers/c"));
  auto waiting = std::async(std::launch::async, [&] { return store->Place(request); });
  gate_.Go();
  EXPECT_OK(dropping.get());
  const auto placed = waiting.get();
  ASSERT_OK(placed);
  EXPECT_EQ(placed->kind, PlacementKind::kVpmem);
  EXPECT_EQ(placed->offset, first.offset);
  EXPECT_EQ(Seen(*placed), ImageOf("ccc", 7 * kMiB));
}

TEST_F(LayerStoreIndexTest, AnArenaThatCannotBeMadeIsNoArena) {
  auto store = *Open(fs_, files_);
  files_.before = [](const std::string& call) {
    return call == "create" ? absl::ResourceExhaustedError("no space left") : absl::OkStatus();
  };
  const std::string layer = Layer("a", "aaa", 64 * kKiB);
  EXPECT_THAT(store->Place(Ask("s1", layer)),
              testing::HasStatus(absl::StatusCode::kResourceExhausted, layer));
  EXPECT_TRUE(store->arenas().empty());
  files_.before = [](const std::string&) { return absl::OkStatus(); };
  EXPECT_EQ(store->Place(Ask("s1", layer))->kind, PlacementKind::kVpmem);
  ASSERT_OK(store->ReleaseSandbox("s1"));
  ASSERT_OK(store->Gc(0));
  EXPECT_EQ(Files(), std::set<std::string>{"index.json"});
}

}  // namespace
}  // namespace lamina::layers
