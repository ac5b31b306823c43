// Claims that do not fit, and guests that give way for them: or do not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/units.h"
#include "node/engine.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"
#include "tests/unit/node/fake_host.h"

namespace lamina::node {
namespace {

using lamina::testing::HasStatus;
using ::testing::HasSubstr;

constexpr int64_t kShim = 100;
constexpr uint64_t kVmm = 64 * kMiB;  // of each claim, what is not the guest's memory

class NodeBalloonsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    config_.paths.state_dir = dir_ / "state";
    config_.memory.capacity_bytes = 4 * kGiB;
    config_.memory.reserve_bytes = 0;
    config_.memory.balloon_floor_bytes = 128 * kMiB;
    config_.memory.balloon_margin_bytes = 64 * kMiB;
    host_.clock = &clock_;
    host_.SetAvailable(64 * kGiB);
    host_.Start(kShim, 1);
    Restart();
  }
  void Restart() {
    node_.reset();
    auto node = Engine::Open(config_, fs_, host_, clock_);
    ASSERT_OK(node);
    node_ = std::move(*node);
    ASSERT_OK(node_->Reconcile());
  }

  absl::StatusOr<uint64_t> Claim(const std::string& id, uint64_t bytes, const sizing::NumaNodes& nodes = {}) {
    laminad::v1::ClaimRequest request;
    request.mutable_numa_nodes()->Add(nodes.begin(), nodes.end());
    request.set_sandbox_id(id);
    request.set_bytes(bytes);
    request.set_shim_pid(kShim);
    request.set_shim_start_time(1);
    const auto response = node_->claims().Claim(request);
    if (!response.ok()) return response.status();
    return response->generation();
  }

  // A running pod whose guest has `base` bytes and uses `used` of them.
  std::unique_ptr<vmm::FakeGuest> Run(const std::string& id, uint64_t base, uint64_t used) {
    const auto generation = Claim(id, base + kVmm);
    EXPECT_OK(generation);
    const int64_t pid = next_pid_++;
    host_.Start(pid, 1);
    auto guest = std::make_unique<vmm::FakeGuest>(base);
    guest->used_bytes = used;
    guest->stats_unix_seconds = Now();
    host_.AddGuest("/run/" + id, guest.get());
    persist::SandboxState state;
    state.sandbox_id = id;
    state.claim_bytes = base + kVmm;
    state.claim_generation = *generation;
    state.runtime_dir = "/run/" + id;
    state.vmm = {pid, 1};
    persist::StateStore store(FileSystem::Real(), config_.paths.state_dir);
    EXPECT_OK(store.Save(state));
    laminad::v1::StartedRequest started;
    started.set_sandbox_id(id);
    started.set_generation(*generation);
    started.set_vmm_pid(pid);
    started.set_vmm_start_time(1);
    EXPECT_OK(node_->claims().Started(started));
    return guest;
  }
  void End(const std::string& id) {
    const lamina::node::v1::SandboxList list = node_->views().sandboxes();
    for (const auto& sandbox : list.sandboxes()) {
      if (sandbox.id() == id) host_.End(sandbox.vmm_pid());
    }
    persist::StateStore store(FileSystem::Real(), config_.paths.state_dir);
    EXPECT_OK(store.Remove(id));
    laminad::v1::ReleaseRequest release;
    release.set_sandbox_id(id);
    EXPECT_OK(node_->claims().Release(release));
  }
  int64_t Now() const { return UnixNanos(clock_.Wall()) / 1'000'000'000; }
  lamina::node::v1::Claim ClaimOf(const std::string& id) {
    const lamina::node::v1::ClaimList list = node_->views().claims();
    for (const auto& claim : list.claims()) {
      if (claim.id() == id) return claim;
    }
    ADD_FAILURE() << "no claim " << id;
    return {};
  }

  lamina::testing::TempDir dir_;
  Config config_;
  FaultyFileSystem fs_{FileSystem::Real()};
  FakeHost host_;
  FakeClock clock_;
  std::unique_ptr<Engine> node_;
  int64_t next_pid_ = 1000;
};

TEST_F(NodeBalloonsTest, ARoundMakesRoomForWhatDoesNotFit) {
  const auto a = Run("a", 2 * kGiB - kVmm, 256 * kMiB), b = Run("b", 1 * kGiB - kVmm, 256 * kMiB);
  ASSERT_OK(node_->Reconcile());
  // They can give 1664 and 640 MiB.
  ASSERT_OK(Claim("new", 1536 * kMiB));
  EXPECT_LE(node_->views().claims().claimed_bytes(), 4 * kGiB);
  const uint64_t gave_a = ClaimOf("a").lowered_bytes(), gave_b = ClaimOf("b").lowered_bytes();
  EXPECT_EQ(gave_a, a->base_bytes - a->actual_bytes);
  EXPECT_NEAR(static_cast<double>(gave_a) / static_cast<double>(gave_b), 1664.0 / 640,
              0.02);  // the same fraction
  EXPECT_GE(a->actual_bytes, 320 * kMiB);
  EXPECT_EQ(ClaimOf("a").floor_bytes(), 320 * kMiB + kVmm);
  EXPECT_THAT(node_->views().MetricsText(), HasSubstr("lamina_balloon_rounds_total{result=\"freed\"} 1\n"));
  // It survives a restart, and what the ended gives back is theirs again.
  Restart();
  EXPECT_EQ(ClaimOf("a").lowered_bytes(), gave_a);
  EXPECT_LE(node_->views().claims().claimed_bytes(), 4 * kGiB);
  End("new");
  ASSERT_OK(node_->Reconcile());
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(ClaimOf("a").lowered_bytes(), 0u);
  EXPECT_EQ(a->actual_bytes, a->base_bytes);
  EXPECT_EQ(b->actual_bytes, b->base_bytes);
  EXPECT_EQ(node_->views().claims().claimed_bytes(), 3 * kGiB);
}

TEST_F(NodeBalloonsTest, ARoundMakesRoomForAResize) {
  const auto a = Run("a", 2 * kGiB - kVmm, 256 * kMiB), b = Run("b", 1 * kGiB - kVmm, 256 * kMiB);
  ASSERT_OK(node_->Reconcile());
  laminad::v1::RetargetRequest request;
  request.set_sandbox_id("b");
  request.set_generation(ClaimOf("b").generation());
  request.set_bytes(3 * kGiB);
  ASSERT_OK(node_->claims().Retarget(request));
  EXPECT_EQ(ClaimOf("b").target_bytes(), 3 * kGiB);
  EXPECT_EQ(ClaimOf("b").lowered_bytes(), 0u);  // who asks gives nothing
  EXPECT_EQ(b->target_bytes, b->base_bytes);
  EXPECT_GE(ClaimOf("a").lowered_bytes(), 1 * kGiB);
  EXPECT_LE(node_->views().claims().claimed_bytes(), 4 * kGiB);
  // More than the other can give: refused at once, and nothing has changed.
  const uint64_t gave = ClaimOf("a").lowered_bytes();
  request.set_bytes(4 * kGiB);
  EXPECT_THAT(node_->claims().Retarget(request),
              HasStatus(absl::StatusCode::kResourceExhausted, "1 running VMs could give"));
  EXPECT_EQ(ClaimOf("b").target_bytes(), 3 * kGiB);
  EXPECT_EQ(ClaimOf("a").lowered_bytes(), gave);
  Restart();
  EXPECT_EQ(ClaimOf("b").target_bytes(), 3 * kGiB);
  EXPECT_LE(node_->views().claims().claimed_bytes(), 4 * kGiB);
}

TEST_F(NodeBalloonsTest, AResizeKeepsItsTime) {
  const auto slow = Run("slow", 3 * kGiB, 128 * kMiB), b = Run("b", 512 * kMiB, 128 * kMiB);
  slow->step_bytes = 1 * kMiB;  // every 50 ms
  ASSERT_OK(node_->Reconcile());
  laminad::v1::RetargetRequest request;
  request.set_sandbox_id("b");
  request.set_generation(ClaimOf("b").generation());
  request.set_bytes(2 * kGiB);
  const auto begin = clock_.Now();
  EXPECT_THAT(node_->claims().Retarget(request, begin + std::chrono::seconds(4)),
              HasStatus(absl::StatusCode::kResourceExhausted, "time was over"));
  EXPECT_LT(clock_.Now() - begin, std::chrono::seconds(4));
  EXPECT_EQ(slow->target_bytes, slow->base_bytes);
  EXPECT_EQ(ClaimOf("b").target_bytes(), 512 * kMiB + kVmm);
}

TEST_F(NodeBalloonsTest, NobodyIsLoweredInVain) {
  const auto a = Run("a", 3 * kGiB, 2 * kGiB);
  ASSERT_OK(node_->Reconcile());
  const auto refused = Claim("new", 3 * kGiB);
  EXPECT_THAT(refused, HasStatus(absl::StatusCode::kResourceExhausted, "1 running VMs could give 960MiB"));
  EXPECT_EQ(a->target_bytes, a->base_bytes);
  EXPECT_THAT(node_->views().MetricsText(), HasSubstr("lamina_balloon_rounds_total{result=\"refused\"} 0\n"));
}

// A node that is short gets nothing from balloons: where their pages lie is not known. The whole does.
TEST_F(NodeBalloonsTest, ASetHasARoundWhereTheWholeIsShort) {
  host_.SetNumaNodes({{0, {64 * kGiB, 64 * kGiB}}, {1, {64 * kGiB, 64 * kGiB}}});
  Restart();
  const auto a = Run("a", 3 * kGiB, 256 * kMiB);
  ASSERT_OK(Claim("bound", 512 * kMiB, {0}));
  ASSERT_OK(node_->Reconcile());
  EXPECT_THAT(Claim("new", 1536 * kMiB + kVmm, {0}),
              HasStatus(absl::StatusCode::kResourceExhausted, "node 0 has 1536MiB of 2GiB available"));
  EXPECT_EQ(a->target_bytes, a->base_bytes);
  ASSERT_OK(Claim("new", 1536 * kMiB, {0}));
  EXPECT_LT(a->target_bytes, a->base_bytes);
  EXPECT_LE(node_->views().claims().claimed_bytes(), 4 * kGiB);
}

TEST_F(NodeBalloonsTest, OldStatisticsGiveNothing) {
  const auto a = Run("a", 3 * kGiB, 256 * kMiB);
  ASSERT_OK(node_->Reconcile());
  clock_.Advance(std::chrono::minutes(1));
  EXPECT_THAT(Claim("new", 2 * kGiB),
              HasStatus(absl::StatusCode::kResourceExhausted, "0 running VMs could give"));
  a->stats_unix_seconds = Now();
  ASSERT_OK(node_->Reconcile());
  EXPECT_OK(Claim("new", 2 * kGiB));
}

TEST_F(NodeBalloonsTest, WhatWasUsedInTheLastMinuteCounts) {
  const auto a = Run("a", 3 * kGiB, 2 * kGiB);
  ASSERT_OK(node_->Reconcile());
  clock_.Advance(std::chrono::seconds(5));
  a->used_bytes = 256 * kMiB;
  a->stats_unix_seconds = Now();
  ASSERT_OK(node_->Reconcile());
  EXPECT_NOT_OK(Claim("new", 2 * kGiB));
  clock_.Advance(std::chrono::minutes(2));
  a->stats_unix_seconds = Now();
  ASSERT_OK(node_->Reconcile());
  EXPECT_OK(Claim("new", 2 * kGiB));
}

TEST_F(NodeBalloonsTest, OneThatMakesNoProgressIsPassedOver) {
  const auto lazy = Run("lazy", 1 * kGiB, 128 * kMiB), good = Run("good", 2 * kGiB, 128 * kMiB);
  lazy->stops_at_bytes = lazy->base_bytes;
  ASSERT_OK(node_->Reconcile());
  // 896 MiB are left; what is missing is within what the good one can give.
  const auto begin = clock_.Now();
  ASSERT_OK(Claim("new", 1536 * kMiB));
  EXPECT_GE(clock_.Now() - begin, std::chrono::seconds(5));
  EXPECT_LT(clock_.Now() - begin, std::chrono::seconds(9));
  EXPECT_EQ(ClaimOf("lazy").lowered_bytes(), 0u);
  EXPECT_EQ(lazy->target_bytes, lazy->base_bytes);
  EXPECT_GE(good->actual_bytes, 192 * kMiB);
  EXPECT_LE(node_->views().claims().claimed_bytes(), 4 * kGiB);
}

TEST_F(NodeBalloonsTest, OneThatNeverDoesIsNamedAndNotAskedAgain) {
  const auto lazy = Run("lazy", 3 * kGiB, 128 * kMiB);
  lazy->stops_at_bytes = lazy->base_bytes;
  for (int round = 0; round < 4; ++round) {
    lazy->stats_unix_seconds = Now();
    ASSERT_OK(node_->Reconcile());
    const auto begin = clock_.Now();
    EXPECT_THAT(Claim("new", 2 * kGiB),
                HasStatus(absl::StatusCode::kResourceExhausted, "no progress from: lazy"));
    EXPECT_LE(clock_.Now() - begin, std::chrono::seconds(10));
    EXPECT_EQ(lazy->target_bytes, lazy->base_bytes);  // nothing is taken for nothing
  }
  lazy->stats_unix_seconds = Now();
  ASSERT_OK(node_->Reconcile());
  const auto begin = clock_.Now();
  EXPECT_THAT(Claim("new", 2 * kGiB),
              HasStatus(absl::StatusCode::kResourceExhausted, "did not cooperate: lazy"));
  EXPECT_EQ(clock_.Now(), begin);
  EXPECT_TRUE(ClaimOf("lazy").uncooperative());
}

TEST_F(NodeBalloonsTest, TheClaimsTimeIsKept) {
  const auto slow = Run("slow", 3 * kGiB, 128 * kMiB);
  slow->step_bytes = 1 * kMiB;  // every 50 ms
  ASSERT_OK(node_->Reconcile());
  laminad::v1::ClaimRequest request;
  request.set_sandbox_id("new");
  request.set_bytes(2 * kGiB);
  request.set_shim_pid(kShim);
  request.set_shim_start_time(1);
  const auto begin = clock_.Now();
  const auto refused = node_->claims().Claim(request, begin + std::chrono::seconds(4));
  EXPECT_THAT(refused, HasStatus(absl::StatusCode::kResourceExhausted, "before the claim's time was over"));
  EXPECT_LT(clock_.Now() - begin, std::chrono::seconds(4));
  EXPECT_EQ(slow->target_bytes, slow->base_bytes);
  EXPECT_EQ(ClaimOf("slow").lowered_bytes(), 0u);
}

TEST_F(NodeBalloonsTest, MemoryThatIsStillHeldIsNotGranted) {
  const auto a = Run("a", 3 * kGiB, 128 * kMiB);
  ASSERT_OK(node_->Reconcile());
  host_.Start(1000, 1, 3 * kGiB);  // its balloon is said to fill, its VMM holds all the same
  EXPECT_NOT_OK(Claim("new", 2 * kGiB));
  EXPECT_EQ(a->target_bytes, a->base_bytes);
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(ClaimOf("a").lowered_bytes(), 0u);
}

TEST_F(NodeBalloonsTest, WhatAGuestTakesBackCountsAtOnce) {
  const auto a = Run("a", 3 * kGiB, 128 * kMiB);
  ASSERT_OK(node_->Reconcile());
  ASSERT_OK(Claim("new", 2 * kGiB));
  a->target_bytes = a->base_bytes;  // as a hostile guest's driver may
  ASSERT_OK(node_->Reconcile());
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(node_->views().claims().available_bytes(), 0u);
  EXPECT_GT(node_->views().claims().claimed_bytes(), 4 * kGiB);
  EXPECT_TRUE(ClaimOf("a").uncooperative());
  a->stats_unix_seconds = Now();
  EXPECT_NOT_OK(Claim("another", 64 * kMiB));
}

TEST_F(NodeBalloonsTest, ARoundThatIsCutShortIsUndone) {
  const auto a = Run("a", 3 * kGiB, 128 * kMiB);
  ASSERT_OK(node_->Reconcile());
  a->target_bytes = a->actual_bytes = 1 * kGiB;  // laminad was killed in the middle of one
  Restart();
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(a->actual_bytes, a->base_bytes);
  EXPECT_EQ(node_->views().claims().claimed_bytes(), 3 * kGiB + kVmm);
}

TEST_F(NodeBalloonsTest, ALoweringThatIsNotDurableGrantsNothing) {
  const auto a = Run("a", 3 * kGiB, 128 * kMiB);
  ASSERT_OK(node_->Reconcile());
  fs_.calls = 0;
  fs_.fail_at = 0;
  EXPECT_NOT_OK(Claim("new", 2 * kGiB));
  fs_.fail_at = -1;
  EXPECT_EQ(ClaimOf("a").lowered_bytes(), 0u);
  EXPECT_EQ(node_->views().claims().claimed_bytes(), 3 * kGiB + kVmm);
  ASSERT_OK(node_->Reconcile());
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(a->actual_bytes, a->base_bytes);
  EXPECT_OK(Claim("new", 2 * kGiB));
}

TEST_F(NodeBalloonsTest, SwitchedOffItRefusesAtOnce) {
  config_.memory.balloon = false;
  Restart();
  const auto a = Run("a", 3 * kGiB, 128 * kMiB);
  ASSERT_OK(node_->Reconcile());
  const auto refused = Claim("new", 2 * kGiB);
  EXPECT_THAT(refused, HasStatus(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(a->target_bytes, a->base_bytes);
}

}  // namespace
}  // namespace lamina::node
