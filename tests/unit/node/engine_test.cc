#include "node/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <thread>

#include "base/framing.h"
#include "base/units.h"
#include "tests/testing/status_matchers.h"
#include "tests/unit/node/fake_host.h"

namespace lamina::node {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kCapacity = 4 * kGiB;
constexpr int64_t kShim = 100, kVmm = 200;

// The real one, whose writes can be held up.
class GatedFileSystem : public FaultyFileSystem {
 public:
  GatedFileSystem() : FaultyFileSystem(FileSystem::Real()) {}
  void Block() {
    MutexLock lock(mutex_);
    blocked_ = true;
  }
  void Unblock() {
    MutexLock lock(mutex_);
    blocked_ = false;
    changed_.NotifyAll();
  }
  // Yields until it is so.
  static void WaitUntil(const std::function<bool()>& holds) {
    while (!holds()) std::this_thread::yield();
  }
  absl::Status AppendAndSync(const std::string& path, std::string_view data) override {
    {
      MutexLock lock(mutex_);
      while (blocked_) changed_.Wait(mutex_);
    }
    return FileSystem::Real().AppendAndSync(path, data);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool blocked_ GUARDED_BY(mutex_) = false;
};

class EngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char directory[] = "/tmp/lamina-unit-node-XXXXXX";
    ASSERT_NE(mkdtemp(directory), nullptr);
    directory_ = directory;
    config_.paths.state_dir = directory_ + "/state";
    config_.memory.capacity_bytes = kCapacity;
    config_.memory.reserve_bytes = 0;
    config_.memory.min_available_bytes = 1 * kGiB;
    config_.layers.arena_bytes = 16 * kMiB;
    host_.Start(kShim, 1);
    Restart();
    ASSERT_OK(node_->Reconcile());
  }
  void TearDown() override {
    node_.reset();
    FileSystem::Real().RemoveTree(directory_).IgnoreError();
  }

  // As after a crash: nothing but the files is left.
  void Restart() {
    node_.reset();
    absl::StatusOr<std::unique_ptr<Engine>> node = Engine::Open(config_, fs_, host_, clock_);
    ASSERT_OK(node);
    node_ = std::move(*node);
  }

  laminad::v1::ClaimRequest Request(const std::string& id, uint64_t bytes, int64_t shim = kShim) {
    laminad::v1::ClaimRequest request;
    request.set_sandbox_id(id);
    request.set_pod_namespace("shop");
    request.set_bytes(bytes);
    request.set_shim_pid(shim);
    request.set_shim_start_time(1);
    return request;
  }
  absl::StatusOr<uint64_t> ClaimSet(const std::string& id, uint64_t bytes, const sizing::NumaNodes& nodes) {
    laminad::v1::ClaimRequest request = Request(id, bytes);
    request.mutable_numa_nodes()->Add(nodes.begin(), nodes.end());
    const auto response = node_->claims().Claim(request);
    if (!response.ok()) return response.status();
    return response->generation();
  }
  // What can be claimed of each NUMA node, in order, in MiB.
  std::vector<uint64_t> NodesLeft() {
    std::vector<uint64_t> left;
    const lamina::node::v1::ClaimList list = node_->views().claims();
    for (const auto& node : list.numa_nodes()) left.push_back(node.available_bytes() / kMiB);
    return left;
  }
  // A machine with two NUMA nodes, 3 and 1 GiB of the capacity theirs.
  void UseNumaNodes(uint64_t left_on_0 = 12 * kGiB) {
    host_.SetNumaNodes({{0, {12 * kGiB, left_on_0}}, {2, {4 * kGiB, 4 * kGiB}}});
    Restart();
    ASSERT_OK(node_->Reconcile());
  }
  absl::StatusOr<uint64_t> Claim(const std::string& id, uint64_t bytes, int64_t shim = kShim) {
    const auto response = node_->claims().Claim(Request(id, bytes, shim));
    if (!response.ok()) return response.status();
    return response->generation();
  }
  absl::Status Started(const std::string& id, uint64_t generation, int64_t vmm = kVmm) {
    laminad::v1::StartedRequest request;
    request.set_sandbox_id(id);
    request.set_generation(generation);
    request.set_vmm_pid(vmm);
    request.set_vmm_start_time(1);
    return node_->claims().Started(request);
  }
  absl::Status Release(const std::string& id, uint64_t generation) {
    laminad::v1::ReleaseRequest request;
    request.set_sandbox_id(id);
    request.set_generation(generation);
    return node_->claims().Release(request);
  }
  absl::Status Retarget(const std::string& id, uint64_t generation, uint64_t bytes) {
    laminad::v1::RetargetRequest request;
    request.set_sandbox_id(id);
    request.set_generation(generation);
    request.set_bytes(bytes);
    return node_->claims().Retarget(request);
  }
  uint64_t Claimed() { return node_->views().claims().claimed_bytes(); }

  std::string directory_;
  Config config_;
  GatedFileSystem slow_;
  FaultyFileSystem fs_{static_cast<FileSystem&>(slow_)};  // the cast: not a copy of its base
  FakeHost host_;
  FakeClock clock_;
  std::unique_ptr<Engine> node_;
};

TEST_F(EngineTest, GrantsNothingBeforeItHasReconciled) {
  Restart();
  EXPECT_FALSE(node_->views().ready());
  EXPECT_THAT(Claim("one", 1 * kMiB), testing::HasStatus(absl::StatusCode::kUnavailable));
  EXPECT_THAT(node_->views().MetricsText(),
              HasSubstr("lamina_claims_refused_total{reason=\"not_ready\"} 1\n"));
  ASSERT_OK(node_->Reconcile());
  EXPECT_OK(Claim("one", 1 * kMiB));
}

TEST_F(EngineTest, RefusesWithTheNumbers) {
  ASSERT_OK(Claim("one", 3 * kGiB));
  const auto refused = Claim("two", 2 * kGiB);
  EXPECT_THAT(refused, testing::HasStatus(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("1GiB"));
  EXPECT_EQ(Claimed(), 3 * kGiB);
}

TEST_F(EngineTest, ARepeatedClaimIsTheSameClaim) {
  const auto first = Claim("one", 1 * kGiB);
  EXPECT_EQ(Claim("one", 1 * kGiB).value(), first.value());
  EXPECT_EQ(Claimed(), 1 * kGiB);
  EXPECT_THAT(Claim("one", 2 * kGiB), testing::HasStatus(absl::StatusCode::kAlreadyExists));
}

TEST_F(EngineTest, ClaimsAtTheSameTimeShareWrites) {
  constexpr int kClaims = 64;
  fs_.calls = 0;
  ASSERT_OK(Claim("alone", 1 * kMiB));
  const int alone = fs_.calls;
  slow_.Block();
  fs_.calls = 0;
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < kClaims; ++i)
      threads.emplace_back([&, i] { EXPECT_OK(Claim("s" + std::to_string(i), 1 * kMiB)); });
    slow_.WaitUntil([&] { return node_->views().sandboxes().sandboxes_size() == kClaims + 1; });
    slow_.Unblock();
  }
  EXPECT_LE(fs_.calls, 2 * alone);  // the one that was being written, and one for all the others
  Restart();
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(Claimed(), (kClaims + 1) * kMiB);
}

// Every write that a claim needs fails once: the claim is refused then, holds nothing, and is not there after
// a crash.
TEST_F(EngineTest, AClaimThatIsNotDurableIsNoClaim) {
  fs_.calls = 0;
  ASSERT_OK(Claim("probe", 1 * kMiB));
  const int writes = fs_.calls;
  ASSERT_GT(writes, 0);
  ASSERT_OK(Release("probe", 0));
  for (int fail_at = 0; fail_at < writes; ++fail_at) {
    fs_.calls = 0;
    fs_.fail_at = fail_at;
    const auto claim = Claim("one", 1 * kGiB);
    fs_.fail_at = -1;
    EXPECT_NOT_OK(claim) << fail_at;
    EXPECT_EQ(Claimed(), 0u) << fail_at;
    EXPECT_EQ(node_->views().sandboxes().sandboxes_size(), 0) << fail_at;
  }
  EXPECT_OK(Claim("one", 1 * kGiB));
}

TEST_F(EngineTest, AReleaseThatIsNotDurableCanBeRepeated) {
  fs_.calls = 0;
  const auto probe = Claim("probe", 1 * kMiB);
  ASSERT_OK(Release("probe", *probe));
  const auto claim = Claim("one", 1 * kGiB);
  fs_.calls = 0;
  fs_.fail_at = 0;
  EXPECT_NOT_OK(Release("one", *claim));
  fs_.fail_at = -1;
  EXPECT_EQ(Claimed(), 1 * kGiB);
  EXPECT_OK(Release("one", *claim));
  EXPECT_EQ(Claimed(), 0u);
}

TEST_F(EngineTest, AFailedRetargetChangesNothing) {
  const auto claim = Claim("one", 1 * kGiB);
  for (const uint64_t bytes : {2 * kGiB, 512 * kMiB}) {
    fs_.calls = 0;
    fs_.fail_at = 0;
    EXPECT_NOT_OK(Retarget("one", *claim, bytes));
    fs_.fail_at = -1;
    EXPECT_EQ(Claimed(), 1 * kGiB) << bytes;
  }
  EXPECT_THAT(Retarget("one", *claim, 5 * kGiB), testing::HasStatus(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(Retarget("one", *claim + 1, 1 * kMiB),
              testing::HasStatus(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(Retarget("one", *claim, 0), testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(Claimed(), 1 * kGiB);
  EXPECT_OK(Retarget("one", *claim, 2 * kGiB));
  EXPECT_EQ(Claimed(), 2 * kGiB);
  Restart();
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(Claimed(), 2 * kGiB);
}

TEST_F(EngineTest, AResizeChangesWhatIsShown) {
  const auto claim = Claim("one", 1 * kGiB);
  laminad::v1::RetargetRequest request;
  request.set_sandbox_id("one");
  request.set_generation(*claim);
  request.set_bytes(2 * kGiB);
  request.mutable_sizing()->set_vcpus(3);
  request.mutable_sizing()->set_memory_bytes(1900 * kMiB);
  request.mutable_sizing()->set_limit_nano_cpus(2'500'000'000);
  request.mutable_sizing()->add_reasons("resized");
  const auto shows = [&](uint32_t vcpus) {
    const lamina::node::v1::SandboxList list = node_->views().sandboxes();
    return list.sandboxes_size() == 1 && list.sandboxes(0).vcpus() == vcpus;
  };
  fs_.calls = 0;
  fs_.fail_at = 0;
  EXPECT_NOT_OK(node_->claims().Retarget(request));
  fs_.fail_at = -1;
  EXPECT_TRUE(shows(0));
  EXPECT_EQ(Claimed(), 1 * kGiB);
  ASSERT_OK(node_->claims().Retarget(request));
  fs_.calls = 0;
  ASSERT_OK(node_->claims().Retarget(request));
  EXPECT_EQ(fs_.calls, 0);  // repeated it finds everything as it is
  for (int restarted = 0; restarted < 2; ++restarted) {
    EXPECT_TRUE(shows(3));
    EXPECT_THAT(node_->views().sandboxes().sandboxes(0).reasons(0), "resized");
    EXPECT_EQ(node_->views().sandboxes().sandboxes(0).limit_cpus(), 2.5);
    EXPECT_THAT(node_->views().MetricsText(),
                ::testing::ContainsRegex("lamina_sandbox_vcpus\\{[^}]*\\} 3\n"));
    Restart();
    ASSERT_OK(node_->Reconcile());
  }
  request.mutable_sizing()->set_vcpus(4);  // the size alone, at the same claim
  ASSERT_OK(node_->claims().Retarget(request));
  EXPECT_TRUE(shows(4));
  ASSERT_OK(Retarget("one", *claim, 1 * kGiB));  // the claim alone
  EXPECT_TRUE(shows(4));
  EXPECT_EQ(Claimed(), 1 * kGiB);
}

TEST_F(EngineTest, IsReleasedOnlyWhenTheVmIsSeenDead) {
  const auto claim = Claim("one", 1 * kGiB);
  host_.Start(kVmm, 1);
  ASSERT_OK(Started("one", *claim));
  EXPECT_THAT(Release("one", *claim), testing::HasStatus(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(Release("one", 0), testing::HasStatus(absl::StatusCode::kFailedPrecondition));
  host_.End(kVmm);
  EXPECT_OK(Release("one", *claim + 7));  // stale
  EXPECT_EQ(Claimed(), 1 * kGiB);
  EXPECT_OK(Release("one", *claim));
  EXPECT_OK(Release("one", *claim));
  EXPECT_EQ(Claimed(), 0u);
}

// The kernel gives a pid again: another process with the VM's number is not the VM.
TEST_F(EngineTest, AReusedPidIsNotTheVm) {
  const auto claim = Claim("one", 1 * kGiB);
  host_.Start(kVmm, 1);
  ASSERT_OK(Started("one", *claim));
  host_.Start(kVmm, 999);
  EXPECT_OK(Release("one", *claim));
}

TEST_F(EngineTest, CountsTheLargerOfPromiseAndResidence) {
  const auto claim = Claim("one", 1 * kGiB);
  host_.Start(kVmm, 1, 256 * kMiB);
  ASSERT_OK(Started("one", *claim));
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(Claimed(), 1 * kGiB);
  EXPECT_EQ(node_->views().claims().claims(0).outstanding_bytes(), 768 * kMiB);
  host_.Start(kVmm, 1, 3 * kGiB);
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(Claimed(), 3 * kGiB);
  EXPECT_THAT(Claim("two", 2 * kGiB), testing::HasStatus(absl::StatusCode::kResourceExhausted));
}

TEST_F(EngineTest, ClaimsOfTheDeadAreDropped) {
  host_.Start(101, 1);
  const auto built = Claim("built", 1 * kGiB, 101);
  const auto building = Claim("building", 512 * kMiB, 101);
  ASSERT_OK(Claim("other", 256 * kMiB));
  host_.Start(kVmm, 1);
  ASSERT_OK(Started("built", *built));
  host_.End(101);  // the shim; its VM lives on
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(Claimed(), 1 * kGiB + 256 * kMiB);
  host_.End(kVmm);
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(Claimed(), 256 * kMiB);
}

TEST_F(EngineTest, ADeadOwnersClaimIsNotInTheWay) {
  host_.Start(101, 1);
  ASSERT_OK(Claim("one", 1 * kGiB, 101));
  host_.End(101);
  const auto again = Claim("one", 2 * kGiB);
  EXPECT_OK(again);
  EXPECT_EQ(Claimed(), 2 * kGiB);
}

TEST_F(EngineTest, AShimThatIsNotSeenGetsNothing) {
  EXPECT_THAT(Claim("one", 1 * kMiB, 4242), testing::HasStatus(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(Claim("one", 1 * kMiB, 0), testing::HasStatus(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(Claimed(), 0u);
}

TEST_F(EngineTest, AfterACrashTheLedgerIsWhatItWas) {
  const auto kept = Claim("kept", 1 * kGiB);
  host_.Start(kVmm, 1, 2 * kGiB);
  ASSERT_OK(Started("kept", *kept));
  ASSERT_OK(Claim("building", 512 * kMiB));
  Restart();
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(Claimed(), 2 * kGiB + 512 * kMiB);  // what is observed, where it is more
  const auto next = Claim("next", 1 * kMiB);
  EXPECT_GT(*next, *kept);
  EXPECT_THAT(Release("kept", *kept), testing::HasStatus(absl::StatusCode::kFailedPrecondition));
}

TEST_F(EngineTest, AVmThatNobodyRecordedIsCounted) {
  persist::SandboxState state;
  state.sandbox_id = "seen";
  state.claim_bytes = state.memory_bytes = 3 * kGiB;
  state.claim_generation = 9;
  state.vmm = {kVmm, 1};
  persist::StateStore store(FileSystem::Real(), config_.paths.state_dir);
  ASSERT_OK(store.Save(state));
  host_.Start(kVmm, 1);
  Restart();
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(Claimed(), 3 * kGiB);
  EXPECT_GT(Claim("next", 1 * kMiB).value(), 9u);
}

TEST_F(EngineTest, ADamagedSandboxStateStopsNobody) {
  ASSERT_OK(FileSystem::Real().MakeDirectories(config_.paths.state_dir + "/sandboxes/broken", 0700));
  ASSERT_OK(FileSystem::Real().WriteAndSync(config_.paths.state_dir + "/sandboxes/broken/state.json",
                                            "nonsense", 0600));
  Restart();
  EXPECT_OK(node_->Reconcile());
  EXPECT_OK(Claim("one", 1 * kMiB));
}

// QEMU may run although nobody told laminad, and the one file that would say so cannot be read.
TEST_F(EngineTest, ADamagedSandboxStateKeepsItsClaim) {
  host_.Start(101, 1);
  const auto claim = Claim("one", 1 * kGiB, 101);
  ASSERT_OK(claim);
  const std::string dir = config_.paths.state_dir + "/sandboxes/one";
  ASSERT_OK(FileSystem::Real().MakeDirectories(dir, 0700));
  ASSERT_OK(FileSystem::Real().WriteAndSync(dir + "/state.json", "nonsense", 0600));
  EXPECT_THAT(Release("one", *claim), testing::HasStatus(absl::StatusCode::kFailedPrecondition));
  host_.End(101);
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(Claimed(), 1 * kGiB);
  ASSERT_OK(FileSystem::Real().RemoveTree(dir));
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(Claimed(), 0u);
}

TEST_F(EngineTest, DamagedClaimsAreNotTakenForNone) {
  ASSERT_OK(Claim("one", 1 * kGiB));
  const std::string path = config_.paths.state_dir + "/claims.journal";
  ASSERT_OK(FileSystem::Real().WriteAndSync(path, EncodeFrame({"claims", 2, 99}, ""), 0600));
  EXPECT_THAT(Engine::Open(config_, fs_, host_, clock_),
              testing::HasStatus(absl::StatusCode::kFailedPrecondition));
  ASSERT_OK(FileSystem::Real().WriteAndSync(path, "lamina-claims 1", 0600));
  EXPECT_THAT(Engine::Open(config_, fs_, host_, clock_), testing::HasStatus(absl::StatusCode::kDataLoss));
}

TEST_F(EngineTest, ANumaNodeHasItsPartOfTheCapacity) {
  config_.memory.capacity_bytes = 5 * kGiB;
  config_.memory.reserve_bytes = 600 * kMiB;
  config_.memory.carve_out_bytes = 424 * kMiB;
  UseNumaNodes();
  EXPECT_THAT(NodesLeft(), ElementsAre(3072, 1024));
  EXPECT_THAT(node_->views().MetricsText(),
              AllOf(HasSubstr("\nlamina_numa_node_capacity_bytes{node=\"0\"} 3221225472\n"),
                    HasSubstr("\nlamina_numa_node_capacity_bytes{node=\"2\"} 1073741824\n")));
}

TEST_F(EngineTest, AMachineThatShowsNoNumaNodesGrantsNoSet) {
  EXPECT_THAT(NodesLeft(), ElementsAre());
  const auto refused = ClaimSet("one", 1 * kGiB, {0});
  EXPECT_THAT(refused, testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("no NUMA node 0 with memory here"));
  EXPECT_OK(Claim("one", 1 * kGiB));
}

TEST_F(EngineTest, ASetIsGrantedWholeOrNotAtAll) {
  UseNumaNodes();
  const auto both = ClaimSet("both", 1 * kGiB, {0, 2});
  ASSERT_OK(both);
  EXPECT_THAT(NodesLeft(), ElementsAre(2560, 512));
  const auto refused = ClaimSet("more", 2 * kGiB, {0, 2});
  EXPECT_THAT(refused, testing::HasStatus(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("node 2 has 512MiB of 1GiB available, 1GiB are wanted there"));
  EXPECT_THAT(NodesLeft(), ElementsAre(2560, 512));
  EXPECT_THAT(ClaimSet("more", 2 * kGiB, {0, 1}), testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(ClaimSet("more", 2 * kGiB, {0}));
  const lamina::node::v1::ClaimList list = node_->views().claims();
  ASSERT_EQ(list.claims_size(), 2);
  EXPECT_THAT(list.claims(0).numa_nodes(), ElementsAre(0, 2));
  EXPECT_THAT(node_->views().sandboxes().sandboxes(1).numa_nodes(), ElementsAre(0));
  EXPECT_THAT(node_->views().MetricsText(),
              AllOf(HasSubstr("\nlamina_numa_node_available_bytes{node=\"2\"} 536870912\n"),
                    HasSubstr("\nlamina_numa_node_claimed_bytes{node=\"0\"} 2684354560\n"),
                    HasSubstr("lamina_claims_refused_total{reason=\"no_memory\"} 1\n"),
                    HasSubstr("lamina_claims_refused_total{reason=\"invalid\"} 1\n")));
}

TEST_F(EngineTest, ANewSetReplacesTheOldUntilItsVmRuns) {
  UseNumaNodes();
  const auto first = ClaimSet("one", 1 * kGiB, {2});
  EXPECT_EQ(ClaimSet("one", 1 * kGiB, {2}).value(), first.value());  // repeated: the same claim
  const auto second = ClaimSet("one", 2 * kGiB, {0});
  ASSERT_OK(second);
  EXPECT_GT(*second, *first);
  EXPECT_THAT(NodesLeft(), ElementsAre(1024, 1024));
  // One that cannot be had leaves the old one.
  EXPECT_THAT(ClaimSet("one", 2 * kGiB, {2}), testing::HasStatus(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(ClaimSet("one", 2 * kGiB, {0}).value(), *second);
  EXPECT_THAT(Claim("one", 2 * kGiB), testing::HasStatus(absl::StatusCode::kAlreadyExists));
  host_.Start(kVmm, 1);
  ASSERT_OK(Started("one", *second));
  EXPECT_THAT(ClaimSet("one", 1 * kGiB, {2}), testing::HasStatus(absl::StatusCode::kAlreadyExists));
  EXPECT_THAT(NodesLeft(), ElementsAre(1024, 1024));
}

// Taken, but not written down: the sandbox has neither the new set nor the old, also after a crash.
TEST_F(EngineTest, ASetThatIsNotDurableIsNoSet) {
  UseNumaNodes();
  ASSERT_OK(ClaimSet("one", 1 * kGiB, {2}));
  fs_.calls = 0;
  fs_.fail_at = 0;
  EXPECT_NOT_OK(ClaimSet("one", 1 * kGiB, {0}));
  fs_.fail_at = -1;
  EXPECT_EQ(Claimed(), 0u);
  ASSERT_OK(ClaimSet("other", 2 * kGiB, {0}));
  for (int restarted = 0; restarted < 2; ++restarted) {
    EXPECT_EQ(Claimed(), 2 * kGiB);
    EXPECT_THAT(NodesLeft(), ElementsAre(1024, 1024));
    Restart();
    ASSERT_OK(node_->Reconcile());
  }
}

TEST_F(EngineTest, ASetComesBackAfterACrashAndMovesWithItsVm) {
  UseNumaNodes();
  const auto claim = ClaimSet("one", 1 * kGiB, {0, 2});
  host_.Start(kVmm, 1);
  ASSERT_OK(Started("one", *claim));
  for (int restarted = 0; restarted < 2; ++restarted) {
    EXPECT_THAT(NodesLeft(), ElementsAre(2560, 512));
    EXPECT_THAT(node_->views().claims().claims(0).numa_nodes(), ElementsAre(0, 2));
    Restart();
    ASSERT_OK(node_->Reconcile());
  }
  const absl::Status refused = Retarget("one", *claim, 2 * kGiB + 2 * kMiB);
  EXPECT_THAT(refused, testing::HasStatus(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("node 2 has 512MiB of 1GiB available, 513MiB are"));
  EXPECT_THAT(NodesLeft(), ElementsAre(2560, 512));
  ASSERT_OK(Retarget("one", *claim, 2 * kGiB));
  for (int restarted = 0; restarted < 2; ++restarted) {
    EXPECT_THAT(NodesLeft(), ElementsAre(2048, 0));
    Restart();
    ASSERT_OK(node_->Reconcile());
  }
  host_.Start(kVmm, 1, 2 * kGiB);
  ASSERT_OK(Retarget("one", *claim, 1 * kGiB));
  ASSERT_OK(node_->Reconcile());
  EXPECT_THAT(NodesLeft(), ElementsAre(2048, 0));  // what it still holds counts, where it lies
  host_.End(kVmm);
  ASSERT_OK(Release("one", *claim));
  EXPECT_THAT(NodesLeft(), ElementsAre(3072, 1024));
}

// The journal is lost: the VM's own state says where it is bound.
TEST_F(EngineTest, ASetThatNobodyRecordedIsCounted) {
  persist::SandboxState state;
  state.sandbox_id = "seen";
  state.claim_bytes = state.memory_bytes = 1 * kGiB;
  state.claim_generation = 9;
  state.numa_nodes = {2};
  state.vmm = {kVmm, 1};
  ASSERT_OK(persist::StateStore(FileSystem::Real(), config_.paths.state_dir).Save(state));
  host_.Start(kVmm, 1);
  UseNumaNodes();
  EXPECT_THAT(NodesLeft(), ElementsAre(3072, 0));
}

// A VM without a set may lie on any node, and others too: what is seen there decides whether a set is safe.
TEST_F(EngineTest, ANumaNodeThatOthersHaveEatenIntoIsPromisedToNoSet) {
  UseNumaNodes(2 * kGiB);  // 768 MiB of min_available are this node's part
  const auto refused = ClaimSet("one", 2 * kGiB, {0});
  EXPECT_THAT(refused, testing::HasStatus(absl::StatusCode::kUnavailable));
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("node 0 has 1280MiB of memory left"));
  EXPECT_THAT(node_->views().MetricsText(),
              HasSubstr("lamina_claims_refused_total{reason=\"pressure\"} 1\n"));
  const auto granted = ClaimSet("one", 1 * kGiB, {0});
  ASSERT_OK(granted);
  EXPECT_NOT_OK(ClaimSet("two", 512 * kMiB, {0}));  // promised already, and not used yet
  EXPECT_OK(ClaimSet("two", 512 * kMiB, {2}));
  EXPECT_OK(Claim("anywhere", 512 * kMiB));
  host_.SetNumaNodes({{0, {12 * kGiB, 4 * kGiB}}, {2, {4 * kGiB, 4 * kGiB}}});
  ASSERT_OK(node_->Reconcile());
  EXPECT_OK(ClaimSet("three", 512 * kMiB, {0}));
}

TEST_F(EngineTest, PressureStopsGrantingUntilItIsOver) {
  host_.SetAvailable(512 * kMiB);
  ASSERT_OK(node_->Reconcile());
  EXPECT_THAT(Claim("one", 1 * kMiB), testing::HasStatus(absl::StatusCode::kUnavailable));
  EXPECT_THAT(node_->views().status().pressure(), HasSubstr("512 MiB"));
  host_.SetAvailable(8 * kGiB);
  ASSERT_OK(node_->Reconcile());
  EXPECT_OK(Claim("one", 1 * kMiB));
}

TEST_F(EngineTest, TheReserveIsNotForSandboxes) {
  config_.memory.capacity_bytes = 0;
  config_.memory.reserve_bytes = 1 * kGiB;
  config_.memory.carve_out_bytes = 5 * kGiB;
  Restart();
  EXPECT_EQ(node_->views().status().capacity_bytes(), 10 * kGiB);
  config_.memory.carve_out_bytes = 15 * kGiB;
  EXPECT_THAT(Engine::Open(config_, fs_, host_, clock_),
              testing::HasStatus(absl::StatusCode::kInvalidArgument));
}

TEST_F(EngineTest, ReadyIsCountedOnce) {
  const auto claim = Claim("one", 1 * kGiB);
  laminad::v1::ReadyRequest ready;
  ready.set_sandbox_id("one");
  ready.set_generation(*claim);
  (*ready.mutable_phase_seconds())["total"] = 0.5;
  ASSERT_OK(node_->claims().Ready(ready));
  ASSERT_OK(node_->claims().Ready(ready));
  EXPECT_THAT(node_->views().MetricsText(),
              HasSubstr("lamina_sandbox_boot_seconds_count{phase=\"total\"} 1\n"));
  ready.set_generation(*claim + 1);
  EXPECT_THAT(node_->claims().Ready(ready), testing::HasStatus(absl::StatusCode::kFailedPrecondition));
  ready.set_sandbox_id("unknown");
  EXPECT_THAT(node_->claims().Ready(ready), testing::HasStatus(absl::StatusCode::kNotFound));
}

TEST_F(EngineTest, ManyAtOnceNeverGetMoreThanThereIs) {
  std::atomic<int> granted{0};
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 8; ++i) {
      threads.emplace_back([&, i] {
        for (int k = 0; k < 4; ++k) {
          const std::string id = "s" + std::to_string(i) + "-" + std::to_string(k);
          const auto claim = Claim(id, 512 * kMiB);
          if (!claim.ok()) continue;
          ++granted;
          if (k % 2 == 0 && Release(id, *claim).ok()) --granted;
        }
      });
    }
  }
  EXPECT_LE(granted, 8);
  EXPECT_EQ(Claimed(), static_cast<uint64_t>(granted) * 512 * kMiB);
}

}  // namespace
}  // namespace lamina::node
