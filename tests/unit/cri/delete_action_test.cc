// What containerd's `delete` does to a shim that is dead, lives, or lives and says nothing.
#include "cri/delete_action.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/clock.h"
#include "base/process.h"
#include "base/subprocess.h"
#include "base/ttrpc/server.h"
#include "base/unix_socket.h"
#include "persist/state_store.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasStatus;

class DeleteActionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    config_.paths.run_dir = dir_ / "run";
    config_.paths.state_dir = dir_ / "state";
    line_.ns = "k8s.io";
    line_.id = "pod";
    socket_ = ShimSocket(config_.paths.run_dir, line_.ns, line_.id);
    fs::create_directories(fs::path(socket_).parent_path());
    SpawnOptions options;
    options.argv = {"sleep", "1000"};
    const auto pid = Spawn(options);
    ASSERT_OK(pid);
    shim_ = {*pid, ProcessStartTime(*pid).value_or(0)};
  }
  void TearDown() override { EXPECT_OK(KillProcess(shim_.pid, shim_.start_time, seconds(5))); }

  void Save(const std::string& boot_id) {
    persist::SandboxState state;
    state.sandbox_id = "pod";
    state.boot_id = boot_id;
    state.shim.pid = shim_.pid;
    state.shim.start_time = shim_.start_time;
    ASSERT_OK(persist::StateStore(FileSystem::Real(), config_.paths.state_dir).Save(state));
  }
  absl::Status Delete(milliseconds patience = milliseconds(100)) {
    const auto deleted = DeleteLost(line_, config_, patience);
    if (deleted.ok()) {
      EXPECT_EQ(deleted->exit_status(), 137U);
    }
    return deleted.status();
  }
  bool ShimLives() const { return ProcessAlive(shim_.pid, shim_.start_time); }
  bool StateIsThere() const { return fs::exists(config_.paths.state_dir + "/sandboxes/pod"); }

  testing::TempDir dir_;
  Config config_;
  CommandLine line_;
  std::string socket_;
  ProcessId shim_;
};

TEST_F(DeleteActionTest, ADeadShimsSandboxIsCleanedUpAndOnce) {
  Save(BootId());
  ASSERT_OK(KillProcess(shim_.pid, shim_.start_time, seconds(5)));
  ASSERT_OK(Delete());
  EXPECT_FALSE(StateIsThere());
  ASSERT_OK(Delete());
}

TEST_F(DeleteActionTest, AShimThatAnswersKeepsItsPod) {
  ttrpc::Server server;  // any answer will do, also that it has no such service
  ASSERT_OK(server.Listen(socket_));
  Save(BootId());
  ASSERT_OK(Delete(seconds(60)));
  EXPECT_TRUE(ShimLives());
  EXPECT_TRUE(StateIsThere());
  EXPECT_TRUE(fs::exists(socket_));
}

TEST_F(DeleteActionTest, AShimThatHasGoneQuietIsEndedAndCleanedUpAfter) {
  const auto silent = ListenUnix(socket_);
  ASSERT_OK(silent);
  Save(BootId());
  ASSERT_OK(Delete());
  EXPECT_FALSE(ShimLives());
  EXPECT_FALSE(StateIsThere());
  EXPECT_FALSE(fs::exists(socket_));
}

TEST_F(DeleteActionTest, AfterARebootTheSamePidIsSomebodyElse) {
  Save("another-boot");
  ASSERT_OK(Delete());
  EXPECT_TRUE(ShimLives());
  EXPECT_FALSE(StateIsThere());
}

TEST_F(DeleteActionTest, AContainersIdHarmsNothing) {
  Save(BootId());
  line_.id = "container";
  ASSERT_OK(Delete());
  EXPECT_TRUE(ShimLives());
  EXPECT_TRUE(StateIsThere());
}

TEST_F(DeleteActionTest, AStateThatCannotBeReadStays) {
  Save(BootId());
  const std::string path = persist::StateStore(FileSystem::Real(), config_.paths.state_dir).Path("pod");
  ASSERT_OK(FileSystem::Real().WriteAndSync(path, "lamina-state 2 00000000\n{}", 0600));
  EXPECT_THAT(Delete(), HasStatus(StatusCode::kDataLoss, path));
  EXPECT_TRUE(StateIsThere());
}

}  // namespace
}  // namespace lamina::cri
