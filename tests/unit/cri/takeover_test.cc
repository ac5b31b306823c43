// A second set of a pod's parts goes on where the first stopped, from the state on disk alone.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <filesystem>
#include <thread>

#include "cri/cleanup.h"
#include "guest/protocol/contract.h"
#include "tests/testing/status_matchers.h"
#include "tests/unit/cri/pod_kit.h"

namespace lamina::cri {
namespace {

using absl::StatusCode;
using std::chrono::seconds;
using testing::HasStatus;

constexpr seconds kGreeting{10};

class TakeoverTest : public PodTest {
 protected:
  struct Parts {
    explicit Parts(TakeoverTest& test)
        : laminad(test.laminad_),
          book(FileSystem::Real(), test.config_.paths.state_dir),
          vm(test.config_, book, laminad, test.Doors(), [](const absl::Status&) {}),
          size(test.config_, book, laminad),
          layers(test.config_.layers.max_arenas_per_pod, book, laminad),
          sockets({}),
          disks(book),
          volumes(book, sockets, &disks),
          containers({test.config_, book, test.events_, vm, size, layers, volumes, disks,
                      [this](const absl::Status&) { ended = true; }, test.kill_bound_}) {}

    absl::Status Restore(const persist::SandboxState& state) {
      book.Restore(state);
      RETURN_IF_ERROR(vm.Restore(kGreeting));
      layers.Restore(state);
      layers.Attach(vm.vm(), vm.agent());
      disks.Restore(state);
      disks.Attach(vm.vm(), vm.agent());
      volumes.Restore(state);
      volumes.Attach(vm.agent());
      size.Attach(vm.vm(), vm.agent(), vm.accel());
      return containers.Restore(state);
    }
    std::vector<std::string> Known() const {
      return book.Look([](const persist::SandboxState& state) {
        std::vector<std::string> ids;
        for (const auto& [id, container] : state.containers) ids.push_back(id);
        return ids;
      });
    }

    LaminadClient laminad;
    StateBook book;
    PodVm vm;
    PodSize size;
    ContainerLayers layers;
    HostSockets sockets;
    PodDisks disks;
    PodVolumes volumes;
    std::atomic<bool> ended{false};
    Containers containers;
  };

  void SetUp() override {
    PodTest::SetUp();
    if (IsSkipped()) return;
    ASSERT_OK(Start());
  }
};

TEST_F(TakeoverTest, ContainersGoOn) {
  ASSERT_OK(Create("made"));
  Run("runs");
  Run("ended");
  guest_.End("ended", 7);
  (*sandbox_->containers().Find("ended", ""))->WaitExit();
  while (State().containers["ended"].life != persist::ContainerLife::kStopped) std::this_thread::yield();
  Parts parts(*this);
  ASSERT_OK(parts.Restore(State()));
  Containers& containers = parts.containers;
  EXPECT_EQ((*containers.Find("made", ""))->status(), ProcessStatus::kCreated);
  EXPECT_EQ((*containers.Find("runs", ""))->status(), ProcessStatus::kRunning);
  EXPECT_EQ((*containers.Find("runs", ""))->pid(), 77U) << "as the state has it";
  const auto ended = *containers.Find("ended", "");
  EXPECT_EQ(ended->status(), ProcessStatus::kStopped);
  EXPECT_EQ(ended->exit()->status, 7U);
  EXPECT_GT(ended->exit()->unix_nanos, 0);

  // Its end is heard of, the others can be started, created, deleted; and nothing of them stays.
  ASSERT_OK(containers.Signal("runs", "", SIGTERM, false));
  EXPECT_EQ((*containers.Find("runs", ""))->WaitExit().status, 128U + SIGTERM);
  ASSERT_OK(containers.Start("made", ""));
  ASSERT_OK(containers.Signal("made", "", SIGKILL, false));
  EXPECT_EQ((*containers.Find("made", ""))->WaitExit().status, 128U + SIGKILL);
  ASSERT_OK(containers.Create(ContainerRequest("new"), std::nullopt));
  EXPECT_THAT(containers.Create(ContainerRequest("runs"), std::nullopt),
              HasStatus(StatusCode::kAlreadyExists, "runs"));
  EXPECT_FALSE(guest_.layers().empty());
  for (const char* id : {"made", "runs", "ended"}) EXPECT_OK(containers.Delete(id, "", std::nullopt)) << id;
  EXPECT_FALSE(guest_.layers().empty()) << "the new one has them";
  EXPECT_OK(containers.Delete("new", "", std::nullopt));
  EXPECT_EQ(guest_.layers(), std::set<std::string>());
  EXPECT_EQ(guest_.containers(), std::set<std::string>());
  EXPECT_EQ(parts.Known(), std::vector<std::string>());
  EXPECT_TRUE(std::filesystem::is_empty(RuntimeDir(config_, "pod") + "/shared.points"));
  EXPECT_TRUE(containers.empty());
  EXPECT_FALSE(parts.ended);
  ASSERT_OK(parts.vm.Stop());
}

TEST_F(TakeoverTest, AContainerThatEndedMeanwhileIsHeardOf) {
  Run("web");
  const persist::SandboxState state = State();
  guest_.End("web", 3);
  Parts parts(*this);
  ASSERT_OK(parts.Restore(state));
  EXPECT_EQ((*parts.containers.Find("web", ""))->WaitExit().status, 3U);
  ASSERT_OK(parts.vm.Stop());
}

// The numbers of a container's streams are in use in the guest; a FIFO that is gone costs its stream alone.
TEST_F(TakeoverTest, StreamsKeepTheirNumbers) {
  containerd::CreateTaskRequest request = ContainerRequest("web");
  request.set_stdout(dir_ / "out");
  ASSERT_EQ(mkfifo(request.stdout().c_str(), 0600), 0);
  ASSERT_OK(sandbox_->containers().Create(request, std::nullopt));
  request = ContainerRequest("mute");
  request.set_stdout(dir_ / "gone");
  ASSERT_EQ(mkfifo(request.stdout().c_str(), 0600), 0);
  ASSERT_OK(sandbox_->containers().Create(request, std::nullopt));
  const uint32_t first = (*sandbox_->containers().Find("web", ""))->stdio->first_id();
  std::filesystem::remove(dir_ / "gone");
  Parts parts(*this);
  ASSERT_OK(parts.Restore(State()));
  const auto web = *parts.containers.Find("web", ""), mute = *parts.containers.Find("mute", "");
  EXPECT_EQ(web->stdio->first_id(), first);
  EXPECT_NE(web->stdio->ids().out, 0U);
  EXPECT_EQ(web->stdio->ids().in, 0U);
  EXPECT_EQ(mute->stdio->ids().out, 0U);
  ASSERT_OK(parts.containers.Create(ContainerRequest("new"), std::nullopt));
  EXPECT_GE((*parts.containers.Find("new", ""))->stdio->first_id(), mute->stdio->first_id() + 3);
  ASSERT_OK(parts.vm.Stop());
}

TEST_F(TakeoverTest, OfAVmThatIsGoneOrMuteChangesNothing) {
  const persist::SandboxState state = State();
  const auto fails = [&](const persist::SandboxState& with, const char* why) {
    Parts parts(*this);
    EXPECT_THAT(parts.Restore(with), HasStatus(StatusCode::kUnavailable, why));
    EXPECT_FALSE(parts.vm.Alive().ok());
  };
  persist::SandboxState other = state;
  ++other.vmm.start_time;
  fails(other, "has ended");
  other = state;
  ++other.virtiofsd.start_time;
  fails(other, "virtiofsd has ended");
  const int calls = static_cast<int>(hypervisor_.calls().size());
  hypervisor_.FailAt(calls);
  fails(state, "injected");
  hypervisor_.FailAt(-1);
  guest_.calls->Handle(guest::kHello, [](const agent::v1::HelloRequest&) {
    return absl::StatusOr<agent::v1::HelloResponse>(absl::UnavailableError("not now"));
  });
  {
    Parts parts(*this);
    EXPECT_FALSE(parts.Restore(state).ok());
  }
  EXPECT_OK(sandbox_->containers().Create(ContainerRequest("web"), std::nullopt).status());
}

}  // namespace
}  // namespace lamina::cri
