// After a reboot nothing old lives, whatever runs under its pids now.
#include "node/other_boots.h"

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
using ::testing::IsEmpty;

constexpr int64_t kShim = 100, kVmm = 200;

class OtherBootsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    config_.paths.state_dir = dir_ / "state";
    config_.paths.run_dir = dir_ / "run";
    config_.memory.capacity_bytes = 4 * kGiB;
    config_.memory.reserve_bytes = 0;
    config_.memory.min_available_bytes = 0;
    config_.memory.balloon = false;
    host_.Start(kShim, 1);
    Open();
    ASSERT_OK(node_->Reconcile());
  }
  void Open() {
    node_.reset();
    auto node = Engine::Open(config_, fs_, host_, clock_);
    ASSERT_OK(node);
    node_ = std::move(*node);
  }
  uint64_t Claim(const std::string& id) {
    laminad::v1::ClaimRequest request;
    request.set_sandbox_id(id);
    request.set_bytes(1 * kGiB);
    request.set_shim_pid(kShim);
    request.set_shim_start_time(1);
    const auto response = node_->claims().Claim(request);
    EXPECT_OK(response);
    return response.ok() ? response->generation() : 0;
  }
  // A pod whose VM runs, with what it has on disk.
  void Run(const std::string& id) {
    const uint64_t generation = Claim(id);
    host_.Start(kVmm, 1);
    persist::SandboxState state;
    state.sandbox_id = id;
    state.claim_bytes = 1 * kGiB;
    state.claim_generation = generation;
    state.shim = {kShim, 1};
    state.vmm = {kVmm, 1};
    state.boot_id = host_.BootId();
    state.runtime_dir = config_.paths.run_dir + "/s/" + id;
    ASSERT_OK(fs_.MakeDirectories(state.runtime_dir + "/shared", 0700));
    ASSERT_OK(fs_.WriteAndSync(state.runtime_dir + "/qemu.log", "old", 0600));
    ASSERT_OK(states_.Save(state));
    laminad::v1::StartedRequest started;
    started.set_sandbox_id(id);
    started.set_generation(generation);
    started.set_vmm_pid(kVmm);
    started.set_vmm_start_time(1);
    ASSERT_OK(node_->claims().Started(started));
  }
  // The same pids and start times, of other processes.
  void RebootWithTheSamePids() {
    host_.Reboot("second-boot");
    host_.Start(kShim, 1);
    host_.Start(kVmm, 1);
  }
  uint64_t Claimed() { return node_->views().status().claimed_bytes(); }

  lamina::testing::TempDir dir_;
  Config config_;
  FaultyFileSystem fs_{FileSystem::Real()};
  persist::StateStore states_{FileSystem::Real(), dir_ / "state"};
  FakeHost host_;
  FakeClock clock_;
  std::unique_ptr<Engine> node_;
};

TEST_F(OtherBootsTest, AWholeSandboxIsCleared) {
  Run("old");
  Open();
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(Claimed(), 1 * kGiB);  // the same boot: it lives
  RebootWithTheSamePids();
  Open();
  EXPECT_EQ(Claimed(), 0u);
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(Claimed(), 0u);
  EXPECT_THAT(states_.List().value(), IsEmpty());
  EXPECT_FALSE(fs_.Exists(config_.paths.run_dir + "/s/old"));
  EXPECT_TRUE(fs_.Exists(config_.paths.run_dir + "/s"));
  Claim("old");  // its name is free
  EXPECT_EQ(Claimed(), 1 * kGiB);
}

TEST_F(OtherBootsTest, AClaimWithoutAStateCountsForNothing) {
  Claim("unstarted");
  RebootWithTheSamePids();
  Open();
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(Claimed(), 0u);
  EXPECT_EQ(node_->views().sandboxes().sandboxes_size(), 0);
}

// The journal is lost: the state alone does not bring the sandbox back.
TEST_F(OtherBootsTest, AStateWithoutAClaimIsNotAdopted) {
  Run("old");
  ASSERT_OK(fs_.Remove(config_.paths.state_dir + "/claims.journal"));
  RebootWithTheSamePids();
  Open();
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(Claimed(), 0u);
  EXPECT_THAT(states_.List().value(), IsEmpty());
}

// An older Lamina wrote no boot: pid and start time decide, as they did.
TEST_F(OtherBootsTest, WithoutABootIdThePidsDecide) {
  Run("old");
  persist::SandboxState state = states_.Load("old").value();
  state.boot_id.clear();
  ASSERT_OK(states_.Save(state));
  ASSERT_OK(fs_.Remove(config_.paths.state_dir + "/claims.journal"));
  RebootWithTheSamePids();
  Open();
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(Claimed(), 1 * kGiB);
  EXPECT_TRUE(fs_.Exists(state.runtime_dir));
}

// Whatever fails, the state stays until all else is gone, and the next look goes on.
TEST_F(OtherBootsTest, ClearingIsTriedAgainUntilItIsDone) {
  Run("old");
  RebootWithTheSamePids();
  Open();
  for (int fail_at = 0;; ++fail_at) {
    fs_.calls = 0;
    fs_.fail_at = fail_at;
    ASSERT_OK(node_->Reconcile());
    const bool failed = fs_.calls > fail_at;
    fs_.fail_at = -1;
    EXPECT_EQ(Claimed(), 0u);
    if (!failed) break;
    if (states_.List().value().empty()) {
      EXPECT_FALSE(fs_.Exists(config_.paths.run_dir + "/s/old")) << fail_at;
    }
  }
  EXPECT_THAT(states_.List().value(), IsEmpty());
}

TEST_F(OtherBootsTest, NothingOutsideTheRunDirectoryIsRemoved) {
  const std::string other = dir_ / "precious";
  ASSERT_OK(fs_.MakeDirectories(other, 0700));
  for (const std::string& path : {other, config_.paths.run_dir, config_.paths.run_dir + "/../precious"}) {
    persist::SandboxState state;
    state.sandbox_id = "old";
    state.runtime_dir = path;
    ASSERT_OK(states_.Save(state));
    EXPECT_THAT(ClearOtherBoot(fs_, config_.paths.run_dir, config_.paths.state_dir, state),
                HasStatus(absl::StatusCode::kFailedPrecondition, path + " is not in"));
    EXPECT_TRUE(fs_.Exists(other));
    EXPECT_OK(states_.Load("old"));
  }
}

TEST(MountIn, FindsWhatIsMountedInADirectory) {
  const std::string mountinfo =
      "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
      "30 22 0:40 / /run/lamina/s/one/shared/data rw shared:5 - tmpfs tmpfs rw\n"
      "31 22 0:41 / /run/lamina/s/two rw - tmpfs tmpfs rw\n";
  EXPECT_EQ(MountIn(mountinfo, "/run/lamina/s/one"), "/run/lamina/s/one/shared/data");
  EXPECT_EQ(MountIn(mountinfo, "/run/lamina/s/two"), "/run/lamina/s/two");
  EXPECT_EQ(MountIn(mountinfo, "/run/lamina/s/on"), "");
  EXPECT_EQ(MountIn(mountinfo, "/run/lamina/s/three"), "");
}

}  // namespace
}  // namespace lamina::node
