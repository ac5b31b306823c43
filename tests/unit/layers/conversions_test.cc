// Who gives up, what is ended by it, and what is left.
#include "layers/conversions.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <latch>
#include <thread>

#include "base/subprocess.h"
#include "base/unique_fd.h"
#include "tests/testing/status_matchers.h"
#include "tests/unit/layers/store_fixture.h"

namespace lamina::layers {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::HasStatus;

Patience For(milliseconds time) { return {steady_clock::now() + time, {}}; }

class ConversionsTest : public StoreFixture {
 protected:
  // Until it is told to stop, or the test says so.
  absl::StatusOr<LayerImagePtr> UntilTold(const std::stop_token& stop) {
    ++made_;
    begun_.count_down();
    std::stop_callback on_stop(stop, [&] {
      if (!told_.exchange(true)) go_.count_down();
    });
    go_.wait();
    if (stop.stop_requested()) {
      stopped_ = true;
      return absl::CancelledError("told to stop");
    }
    auto image = std::make_shared<LayerImage>(FileSystem::Real());
    image->image.digest = "made";
    return image;
  }
  void Tell() {
    if (!told_.exchange(true)) go_.count_down();
  }
  Conversions::Work Work() {
    return [this](const std::stop_token& stop) { return UntilTold(stop); };
  }

  std::latch begun_{1}, go_{1};
  std::atomic<bool> told_ = false, stopped_ = false;
};

TEST_F(ConversionsTest, WhoGivesUpLeavesItToTheOthers) {
  Conversions conversions(1);
  auto first = conversions.Join("layer", "ns"), second = conversions.Join("layer", "ns");
  EXPECT_THAT(first->Get(For(milliseconds(20)), "layer /a", Work()),
              HasStatus(StatusCode::kDeadlineExceeded, "layer /a"));
  EXPECT_TRUE(first->began());
  begun_.wait();
  first.reset();
  EXPECT_FALSE(stopped_);
  EXPECT_FALSE(conversions.idle());
  Tell();
  const auto image = second->Get({}, "layer /a", Work());
  ASSERT_OK(image);
  EXPECT_EQ((*image)->image.digest, "made");
  EXPECT_FALSE(second->began());
  EXPECT_EQ(made_, 1);
  second.reset();
  EXPECT_TRUE(conversions.idle());
}

TEST_F(ConversionsTest, TheLastOneEndsIt) {
  {
    Conversions conversions(1);
    auto first = conversions.Join("layer", "ns"), second = conversions.Join("layer", "ns");
    EXPECT_THAT(first->Get(For(milliseconds(20)), "layer /a", Work()),
                HasStatus(StatusCode::kDeadlineExceeded, "layer /a"));
    begun_.wait();
    std::stop_source gone;
    gone.request_stop();
    EXPECT_THAT(second->Get({.stop = gone.get_token()}, "layer /a", Work()),
                HasStatus(StatusCode::kCancelled, "layer /a"));
    first.reset();
    second.reset();
    EXPECT_TRUE(conversions.idle()) << "who comes now begins anew";
  }
  EXPECT_TRUE(stopped_);
}

TEST_F(ConversionsTest, AnImageIsKeptWhileAnyoneMayWantIt) {
  Conversions conversions(1);
  auto first = conversions.Join("layer", "ns");
  Tell();
  ASSERT_OK(first->Get({}, "layer /a", Work()));
  auto second = conversions.Join("layer", "ns");
  first.reset();
  ASSERT_OK(second->Get({}, "layer /a", Work()));
  EXPECT_EQ(made_, 1);
}

TEST_F(ConversionsTest, AFailureIsThatOfAllWhoWaitAndOfNobodyWhoComesLater) {
  Conversions conversions(1);
  const auto fail = [](const std::stop_token&) -> absl::StatusOr<LayerImagePtr> {
    return absl::DataLossError("mkfs says no");
  };
  auto first = conversions.Join("layer", "ns"), second = conversions.Join("layer", "ns");
  EXPECT_THAT(first->Get({}, "layer /a", fail), HasStatus(StatusCode::kDataLoss, "mkfs says no"));
  EXPECT_THAT(second->Get({}, "layer /a", Work()), HasStatus(StatusCode::kDataLoss, "mkfs says no"));
  Tell();
  EXPECT_OK(conversions.Join("layer", "ns")->Get({}, "layer /a", Work()));
}

TEST_F(ConversionsTest, WhoWaitsForATurnCanGiveUp) {
  Conversions conversions(1);
  auto turn = conversions.Begin({"a", "/a", "/a.part"}, {});
  ASSERT_OK(turn);
  {
    std::stop_source gone;
    auto waiting = std::async(std::launch::async, [&] {
      return conversions.Begin({"b", "/b", "/b.part"}, gone.get_token()).status();
    });
    gone.request_stop();
    EXPECT_THAT(waiting.get(), HasStatus(StatusCode::kCancelled, "/b"));
  }
  ASSERT_EQ(conversions.under_way().size(), 1u);
  EXPECT_EQ(conversions.under_way()[0].source, "/a");
}

// As many images as the node converts at a time, and one more, that never end while the test does not let
// them.
class FairShareTest : public StoreFixture {
 protected:
  static constexpr size_t kCores = 2;
  FairShareTest() {
    options_.max_conversions = kCores;
    store_ = *LayerStore::Open(
        FileSystem::Real(), options_,
        [this](const std::string& directory, const std::string& path, uint64_t, const std::stop_token&) {
          if (directory.find("huge") != std::string::npos) {
            begun_.count_down();
            go_.wait();
          }
          return Make(directory, path);
        });
    for (size_t i = 0; i <= kCores; ++i) {
      const std::string layer = Layer("huge" + std::to_string(i), "huge" + std::to_string(i), kMiB);
      huge_.push_back(std::async(std::launch::async, [this, i, layer] {
        return store_->Place(Ask("huge" + std::to_string(i), layer, "hostile")).status();
      }));
    }
    begun_.wait();
  }

  ~FairShareTest() override { Go(); }
  void Go() {
    if (!gone_.exchange(true)) go_.count_down();
  }

  std::latch begun_{kCores}, go_{1};
  std::atomic<bool> gone_ = false;
  std::unique_ptr<LayerStore> store_;
  std::vector<std::future<absl::Status>> huge_;
};

TEST_F(FairShareTest, ATinyPodOfAnotherDomainDoesNotWait) {
  PlaceRequest request = Ask("tiny", Layer("tiny", "tiny", kMiB), "other");
  request.patience = For(std::chrono::minutes(1));  // where it waits, it waits for ever
  const auto tiny = store_->Place(request);
  ASSERT_OK(tiny);
  EXPECT_EQ(Seen(*tiny), ImageOf("tiny", kMiB));
  EXPECT_EQ(store_->conversions().size(), kCores) << "one domain has no more than the node's own turns";
  EXPECT_EQ(made_, 1) << "no other has ended";
  Go();
  for (auto& one : huge_) EXPECT_OK(one.get());
}

TEST_F(FairShareTest, AnImageThatTwoDomainsWantIsMadeOnce) {
  std::vector<std::future<absl::Status>> others;
  for (size_t i = 0; i <= kCores; ++i) {
    others.push_back(std::async(std::launch::async, [this, i] {
      const std::string name = "huge" + std::to_string(i);
      return store_->Place(Ask("other" + name, root_ + "/layers/" + name, "other")).status();
    }));
  }
  Go();
  for (auto& one : others) EXPECT_OK(one.get());
  for (auto& one : huge_) EXPECT_OK(one.get());
  EXPECT_EQ(made_, static_cast<int>(kCores) + 1) << "each is made once";
}

// A store whose converter is a program that writes half an image and never ends, until the test lets it be
// mkfs.erofs.
class EndlessProgramTest : public StoreFixture {
 protected:
  EndlessProgramTest() { EXPECT_EQ(mkfifo(alive_.c_str(), 0600), 0); }

  absl::StatusOr<std::unique_ptr<LayerStore>> OpenReal() {
    return LayerStore::Open(FileSystem::Real(), options_,
                            [this](const std::string& directory, const std::string& path, uint64_t,
                                   const std::stop_token& stop) -> absl::StatusOr<Image> {
                              if (real_) return mkfs_.Make(directory, path, UINT64_MAX, stop);
                              RETURN_IF_ERROR(RunChecked({"sh", "-c",
                                                          "echo half >\"$0\"\nexec 3>\"$1\"\n"
                                                          "sleep 100000 & wait",
                                                          path, alive_},
                                                         std::chrono::minutes(10), stop));
                              return absl::InternalError("it ended");
                            });
  }
  std::string RealLayer() {
    std::filesystem::create_directories(root_ + "/layer");
    std::ofstream(root_ + "/layer/file") << "content";
    return root_ + "/layer";
  }
  // Returns once the program runs; reading ends when it and its children have.
  UniqueFd WaitUntilItRuns() { return UniqueFd(open(alive_.c_str(), O_RDONLY | O_CLOEXEC)); }
  static void ExpectEnds(const UniqueFd& alive) {
    char byte;
    EXPECT_EQ(read(alive.get(), &byte, 1), 0);
  }
  void ExpectNothingLeft(std::unique_ptr<LayerStore> store) {
    EXPECT_EQ(store->counters().conversion_failures, 0u) << "given up is not failed";
    store.reset();  // waits for the conversion's thread
    for (const std::string& name : Files()) EXPECT_EQ(name, "index.json");
    EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1) << "a child is left";
    EXPECT_EQ(errno, ECHILD);
  }
  void LetItBeReal() { real_ = true; }

  ErofsMaker mkfs_{{}};
  std::atomic<bool> real_ = false;
  const std::string alive_ = root_ + "/alive";
};

TEST_F(EndlessProgramTest, ACallersDeadlineEndsIt) {
  auto store = *OpenReal();
  const std::string layer = RealLayer();
  PlaceRequest request = Ask("s1", layer);
  request.patience.deadline = steady_clock::now() + milliseconds(200);
  const auto start = steady_clock::now();
  EXPECT_THAT(store->Place(request), HasStatus(StatusCode::kDeadlineExceeded, layer));
  EXPECT_LT(steady_clock::now() - start, std::chrono::seconds(30));
  ExpectNothingLeft(std::move(store));
}

TEST_F(EndlessProgramTest, AReleaseEndsItAndTheNextCallConvertsAgain) {
  auto store = *OpenReal();
  const std::string layer = RealLayer();
  auto placing = std::async(std::launch::async, [&] { return store->Place(Ask("s1", layer)).status(); });
  const UniqueFd alive = WaitUntilItRuns();
  EXPECT_EQ(store->conversions().size(), 1u);
  ASSERT_OK(store->ReleaseSandbox("other")) << "ends nobody else's";
  EXPECT_EQ(store->conversions().size(), 1u);
  ASSERT_OK(store->ReleaseSandbox("s1"));
  EXPECT_THAT(placing.get(), HasStatus(StatusCode::kCancelled, layer));
  ExpectEnds(alive);
  LetItBeReal();
  const auto placed = store->Place(Ask("s1", layer));
  ASSERT_OK(placed);
  EXPECT_EQ(placed->kind, PlacementKind::kVpmem);
  EXPECT_EQ(store->arenas()[0].regions[0].users, std::set<std::string>{"s1"});
  ASSERT_OK(store->ReleaseSandbox("s1"));
  ASSERT_OK(store->Gc(0));
  ExpectNothingLeft(std::move(store));
}

TEST_F(EndlessProgramTest, ACallerWhoHangsUpEndsIt) {
  auto store = *OpenReal();
  PlaceRequest request = Ask("s1", RealLayer());
  std::stop_source gone;
  request.patience.stop = gone.get_token();
  auto placing = std::async(std::launch::async, [&] { return store->Place(request).status(); });
  const UniqueFd alive = WaitUntilItRuns();
  gone.request_stop();
  EXPECT_THAT(placing.get(), HasStatus(StatusCode::kCancelled, request.source));
  ExpectEnds(alive);
  ExpectNothingLeft(std::move(store));
}

TEST_F(EndlessProgramTest, OneOfTwoGivesUpAndTheOtherGetsItsLayer) {
  auto store = *OpenReal();
  const std::string layer = RealLayer();
  auto patient = std::async(std::launch::async, [&] { return store->Place(Ask("s1", layer)).status(); });
  const UniqueFd alive = WaitUntilItRuns();
  PlaceRequest hurried = Ask("s2", layer);
  hurried.patience.deadline = steady_clock::now() + milliseconds(20);
  EXPECT_THAT(store->Place(hurried), HasStatus(StatusCode::kDeadlineExceeded, layer));
  EXPECT_EQ(store->conversions().size(), 1u) << "it goes on for the other";
  ASSERT_OK(store->ReleaseSandbox("s1"));
  EXPECT_THAT(patient.get(), HasStatus(StatusCode::kCancelled, layer));
  ExpectEnds(alive);
  ExpectNothingLeft(std::move(store));
}

class GivenUpTest : public StoreFixture {};

TEST_F(GivenUpTest, ACopyIntoAnArena) {
  HookedArenaFiles files;
  auto store = *Open(FileSystem::Real(), files);
  std::stop_source gone;
  files.before = [&](const std::string& call) {
    if (call == "copy in") gone.request_stop();
    return absl::OkStatus();
  };
  PlaceRequest request = Ask("s1", Layer("a", "aaa", 4 * kMiB));
  request.patience.stop = gone.get_token();
  EXPECT_THAT(store->Place(request), HasStatus(StatusCode::kCancelled, request.source));
  EXPECT_TRUE(store->arenas().empty());
  EXPECT_EQ(Files(), std::set<std::string>{"index.json"});
  request.patience = {};
  EXPECT_EQ(Seen(*store->Place(request)), ImageOf("aaa", 4 * kMiB));
}

TEST_F(GivenUpTest, ACopyIsTakenOverByWhoWaitsForIt) {
  HookedArenaFiles files;
  auto store = *Open(FileSystem::Real(), files);
  std::latch copying(1), go(1);
  std::atomic<int> copies = 0;
  files.before = [&](const std::string& call) {
    if (call == "copy in" && ++copies == 1) {
      copying.count_down();
      go.wait();
    }
    return absl::OkStatus();
  };
  const std::string layer = Layer("a", "aaa", 4 * kMiB);
  auto first = std::async(std::launch::async, [&] { return store->Place(Ask("s1", layer)).status(); });
  copying.wait();
  auto second = std::async(std::launch::async, [&] { return store->Place(Ask("s2", layer)); });
  ASSERT_OK(store->ReleaseSandbox("s1"));
  go.count_down();
  EXPECT_THAT(first.get(), HasStatus(StatusCode::kCancelled, layer));
  const auto placed = second.get();
  ASSERT_OK(placed);
  EXPECT_EQ(Seen(*placed), ImageOf("aaa", 4 * kMiB));
  EXPECT_EQ(store->arenas()[0].regions[0].users, std::set<std::string>{"s2"});
}

TEST_F(GivenUpTest, ACheckOfARegionDamagesNothing) {
  const std::string layer = Layer("a", "aaa", 4 * kMiB);
  const Placement placed = *(*Open())->Place(Ask("s1", layer));
  auto store = *Open();
  PlaceRequest late = Ask("s2", layer);
  late.patience.deadline = steady_clock::now();
  EXPECT_THAT(store->Place(late), HasStatus(StatusCode::kDeadlineExceeded, layer));
  EXPECT_EQ(store->counters().rebuilt, 0u);
  EXPECT_EQ(store->arenas()[0].regions[0].users, std::set<std::string>{"s1"});
  const auto again = store->Place(Ask("s2", layer));
  ASSERT_OK(again);
  EXPECT_EQ(again->offset, placed.offset);
  EXPECT_EQ(made_, 1);
}

TEST_F(GivenUpTest, AReleaseTakesBackWhatWasPlacedMeanwhile) {
  options_.max_conversions = 2;
  std::latch second(1), go(1);
  const std::string b = Layer("b", "bbb", kMiB);
  std::unique_ptr<LayerStore> store;
  store = *LayerStore::Open(
      FileSystem::Real(), options_,
      [&](const std::string& directory, const std::string& path, uint64_t, const std::stop_token&) {
        if (directory == b) {
          while (store->counters().placed_vpmem == 0) std::this_thread::yield();
          second.count_down();
          go.wait();
        }
        return Make(directory, path);
      });
  auto placing = std::async(std::launch::async, [&] {
    return store->PlaceAll(Ask("s1", ""), {Layer("a", "aaa", kMiB), b}).status();
  });
  second.wait();
  ASSERT_OK(store->ReleaseSandbox("s1"));
  EXPECT_THAT(placing.get(), HasStatus(StatusCode::kCancelled, ""));
  go.count_down();
  for (const ArenaInfo& arena : store->arenas()) {
    for (const RegionInfo& region : arena.regions) EXPECT_TRUE(region.users.empty());
  }
  ASSERT_OK(store->Gc(0));
  store.reset();
  EXPECT_EQ(Files(), std::set<std::string>{"index.json"});
}

}  // namespace
}  // namespace lamina::layers
