// Containers come and go while guest, laminad, hypervisor and callers fail, hang, lie or give up.
#include "cri/containers.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <iterator>
#include <thread>

#include "guest/protocol/contract.h"
#include "tests/testing/status_matchers.h"
#include "tests/unit/cri/pod_kit.h"

namespace lamina::cri {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasStatus;

constexpr ttrpc::Method<laminad::v1::PlaceLayersRequest, laminad::v1::PlaceLayersResponse> kPlaceLayers{
    "lamina.laminad.v1.Laminad", "PlaceLayers"};

class ContainersTest : public PodTest {
 protected:
  void SetUp() override {
    PodTest::SetUp();
    if (IsSkipped()) return;
    ASSERT_OK(Start());
  }
  Containers& containers() { return sandbox_->containers(); }
};

TEST_F(ContainersTest, LivesOnceFromCreateToDelete) {
  ASSERT_OK(Create("web"));
  ExpectContainers({"web"});
  EXPECT_THAT(Create("web"), HasStatus(StatusCode::kAlreadyExists, "web"));
  const auto pid = containers().Start("web", "");
  ASSERT_OK(pid);
  EXPECT_EQ(*pid, 78U);
  EXPECT_EQ(State().containers["web"].life, persist::ContainerLife::kRunning);
  EXPECT_THAT(containers().Delete("web", "", std::nullopt),
              HasStatus(StatusCode::kFailedPrecondition, "runs"));
  ASSERT_OK(containers().Signal("web", "", SIGTERM, false));
  EXPECT_EQ((*containers().Find("web", ""))->WaitExit().status, 128U + SIGTERM);
  EXPECT_THAT(containers().Signal("web", "", SIGKILL, false), HasStatus(StatusCode::kNotFound, "finished"));
  ASSERT_OK(containers().Delete("web", "", std::nullopt));
  ExpectContainers({});
  EXPECT_THAT(containers().Find("web", ""), HasStatus(StatusCode::kNotFound, "web"));
}

// The kubelet reads it as soon as it hears of the end.
TEST_F(ContainersTest, ATerminationLogIsThereBeforeTheEndIsTold) {
  const std::string log = dir_ / "pods/u/containers/web/1a2b3c4d";
  std::filesystem::create_directories(dir_ / "pods/u/containers/web");
  std::ofstream(log) << "";
  guest_.calls->Handle(guest::kReadFile,
                       [](const agent::v1::ReadFileRequest&) -> absl::StatusOr<agent::v1::ReadFileResponse> {
                         agent::v1::ReadFileResponse answer;
                         answer.set_content("out of cheese");
                         return answer;
                       });
  const containerd::CreateTaskRequest request = ContainerRequest("web");
  std::ofstream(request.bundle() + "/config.json", std::ios::trunc) << fmt::format(
      R"({{"process": {{"args": ["sh"]}}, "root": {{"path": "rootfs"}},
          "mounts": [{{"destination": "/dev/termination-log", "type": "bind", "source": "{}",
                       "options": ["rbind", "rw"]}}],
          "annotations": {{"io.kubernetes.cri.container-type": "container",
                           "io.kubernetes.cri.sandbox-id": "pod"}}}})",
      log);
  ASSERT_OK(containers().Create(request, std::nullopt));
  ASSERT_OK(containers().Start("web", ""));
  guest_.End("web", 3);
  EXPECT_EQ((*containers().Find("web", ""))->WaitExit().status, 3U);
  std::ifstream in(log);
  EXPECT_EQ((std::string{std::istreambuf_iterator<char>(in), {}}), "out of cheese");
  ASSERT_OK(containers().Delete("web", "", std::nullopt));
  EXPECT_EQ(guest_.calls->Count("UnmountVolume"), 2) << "the log's, and that of what it wrote to its root";
  ExpectContainers({});
}

TEST_F(ContainersTest, AFaultAtAnyCallOfItsCreationLeavesNothingAndItCanBeTriedAgain) {
  const auto fail = [&](auto fail_at, const char* who) {
    int failures = 0;
    for (int n = 0;; ++n, ++failures) {
      ASSERT_LT(n, 50) << who;
      fail_at(n);
      const absl::Status status = Create("web");
      fail_at(-1);
      if (status.ok()) break;
      EXPECT_THAT(status, HasStatus(StatusCode::kResourceExhausted, "injected")) << who << ", call " << n;
      ExpectContainers({});
    }
    EXPECT_GE(failures, 1) << who;
    ASSERT_OK(containers().Delete("web", "", std::nullopt));
    ExpectContainers({});
  };
  const absl::Status error = absl::ResourceExhaustedError("injected");
  fail(
      [&](int n) { hypervisor_.FailAt(n < 0 ? n : n + static_cast<int>(hypervisor_.calls().size()), error); },
      "hypervisor");
  fail(
      [&](int n) {
        guest_.calls->FailAt(n < 0 ? n : n + static_cast<int>(guest_.calls->calls().size()), error);
      },
      "agent");
  fail([&](int n) { laminad_->FailAt(n < 0 ? n : n + static_cast<int>(laminad_->calls().size()), error); },
       "laminad");
}

TEST_F(ContainersTest, ALayerIsMountedOnceAndUnmountedWithItsLastUser) {
  ASSERT_OK(Create("web"));
  ASSERT_OK(Create("db"));
  EXPECT_EQ(guest_.calls->Count("MountLayers"), 1);
  EXPECT_EQ(hypervisor_.Count("AddDisk"), 3) << "the layer, and what each writes to";
  ASSERT_OK(containers().Delete("web", "", std::nullopt));
  EXPECT_EQ(guest_.layers().size(), 1U);
  EXPECT_EQ(hypervisor_.Count("RemoveDisk"), 1) << "its own";
  ASSERT_OK(containers().Delete("db", "", std::nullopt));
  EXPECT_EQ(guest_.layers().size(), 0U);
  EXPECT_EQ(hypervisor_.Count("RemoveDisk"), 3);
}

TEST_F(ContainersTest, WhatIsWrittenToTheRootLiesInTheSnapshotsFolder) {
  agent::v1::CreateContainerRequest asked;
  guest_.calls->Handle(guest::kCreateContainer,
                       [&](const agent::v1::CreateContainerRequest& request)
                           -> absl::StatusOr<agent::v1::CreateContainerResponse> {
                         asked = request;
                         return agent::v1::CreateContainerResponse();
                       });
  const std::string image = dir_ / "uppers/web/lamina-root.img";
  ASSERT_OK(Create("web"));
  EXPECT_EQ(asked.writable_volume(), RootVolume("web"));
  EXPECT_EQ(std::filesystem::file_size(image), config_.volumes.root_size_bytes);
  EXPECT_EQ(hypervisor_.Count("AddDisk 0.1 " + image + " writable"), 1);
  ASSERT_EQ(State().disks.size(), 1U);
  EXPECT_EQ(State().disks[0].image, image);
  ASSERT_OK(containers().Delete("web", "", std::nullopt));
  EXPECT_FALSE(std::filesystem::exists(image));
  // A root that is only read has none.
  containerd::CreateTaskRequest request = ContainerRequest("reader");
  std::ofstream(request.bundle() + "/config.json", std::ios::trunc)
      << R"({"process": {"args": ["sh"]}, "root": {"path": "rootfs", "readonly": true},
             "annotations": {"io.kubernetes.cri.container-type": "container"}})";
  ASSERT_OK(containers().Create(request, std::nullopt));
  EXPECT_EQ(asked.writable_volume(), "");
  EXPECT_TRUE(RootImages().empty());
}

// Kill means dead: three guests that do not do as they are told.
class KillTest : public PodTest {
 protected:
  void SetUp() override {
    kill_bound_ = seconds(1);
    PodTest::SetUp();
    if (IsSkipped()) return;
    ASSERT_OK(Start());
    Run("web");
    Run("db");
  }
  void ExpectThePodEnds() {
    EXPECT_EQ((*sandbox_->containers().Find("web", ""))->WaitExit().status, 255U);
    EXPECT_EQ((*sandbox_->containers().Find("db", ""))->WaitExit().status, 255U);
    EXPECT_EQ(sandbox_->process()->WaitExit().status, 255U);
    EXPECT_NE(sandbox_->Info()["ended"].find("container web was killed"), std::string::npos);
    ASSERT_OK(sandbox_->Delete(In(seconds(30))));
    ExpectNothingLeft();
  }
};

TEST_F(KillTest, OkFromTheGuestIsNotAnEnd) {
  guest_.IgnoreSignals();
  ASSERT_OK(sandbox_->containers().Signal("web", "", SIGTERM, false));
  EXPECT_EQ(hypervisor_.processes(), 2U);
  ASSERT_OK(sandbox_->containers().Signal("web", "", SIGKILL, true));
  ExpectThePodEnds();
}

TEST_F(KillTest, AnErrorOfTheGuestSavesNoContainer) {
  guest_.calls->Handle(guest::kSignalProcess,
                       [](const agent::v1::SignalProcessRequest&) -> absl::StatusOr<agent::v1::Empty> {
                         return absl::InternalError("I'd rather not");
                       });
  ASSERT_OK(sandbox_->containers().Signal("web", "", SIGKILL, true));
  ExpectThePodEnds();
}

TEST_F(KillTest, SilenceOfTheGuestSavesNoContainer) {
  guest_.calls->Handle(guest::kSignalProcess,
                       [&](const agent::v1::SignalProcessRequest&) -> absl::StatusOr<agent::v1::Empty> {
                         return guest_.calls->WaitCancelled(seconds(60));
                       });
  ASSERT_OK(sandbox_->containers().Signal("web", "", SIGKILL, true));
  ExpectThePodEnds();
}

TEST_F(KillTest, AContainerThatEndsInTimeCostsNobodyElse) {
  ASSERT_OK(sandbox_->containers().Signal("web", "", SIGKILL, true));
  EXPECT_EQ((*sandbox_->containers().Find("web", ""))->WaitExit().status, 137U);
  std::this_thread::sleep_for(kill_bound_ * 2);  // the bound passes, and nothing happens
  EXPECT_EQ(hypervisor_.processes(), 2U);
}

// A guest whose CreateContainer is on its way until the test says so.
class SlowCreateTest : public ContainersTest {
 protected:
  void SetUp() override {
    ContainersTest::SetUp();
    guest_.calls->Handle(guest::kCreateContainer,
                         [this](const agent::v1::CreateContainerRequest&)
                             -> absl::StatusOr<agent::v1::CreateContainerResponse> {
                           asked_.set_value();
                           go_on_.get_future().get();
                           return agent::v1::CreateContainerResponse();
                         });
  }
  std::promise<void> asked_, go_on_;
};

TEST_F(SlowCreateTest, WhoseDeadlinePassedIsUndone) {
  const auto deadline = In(seconds(2));  // long enough for a busy machine to get as far as the guest
  auto create = std::async(std::launch::async, [&] { return Create("web", deadline); });
  asked_.get_future().get();
  EXPECT_THAT(containers().Find("web", ""), HasStatus(StatusCode::kFailedPrecondition, "being created"));
  std::this_thread::sleep_until(*deadline);
  go_on_.set_value();
  EXPECT_THAT(create.get(), HasStatus(StatusCode::kDeadlineExceeded, "undone"));
  ExpectContainers({});
  ASSERT_OK(sandbox_->Delete(std::nullopt));
  EXPECT_TRUE(sandbox_->IsEmpty(nullptr));
}

TEST_F(SlowCreateTest, IsCancelledByDelete) {
  auto create = std::async(std::launch::async, [&] { return Create("web"); });
  asked_.get_future().get();
  EXPECT_THAT(containers().Delete("web", "", In(milliseconds(10))),
              HasStatus(StatusCode::kDeadlineExceeded, "still being undone"));
  auto deleted =
      std::async(std::launch::async, [&] { return containers().Delete("web", "", In(seconds(30))); });
  go_on_.set_value();
  EXPECT_THAT(create.get(), HasStatus(StatusCode::kCancelled, "deleted"));
  ASSERT_OK(deleted.get());
  ExpectContainers({});
}

TEST_F(SlowCreateTest, AnotherWaitsForItUntilItsOwnDeadline) {
  auto create = std::async(std::launch::async, [&] { return Create("web"); });
  asked_.get_future().get();
  EXPECT_THAT(Create("db", In(milliseconds(20))), HasStatus(StatusCode::kDeadlineExceeded, "others"));
  go_on_.set_value();
  ASSERT_OK(create.get());
}

// laminad is converting a large layer.
class PlacingTest : public ContainersTest {
 protected:
  void SetUp() override {
    ContainersTest::SetUp();
    laminad_->Handle(
        kPlaceLayers,
        [this](const laminad::v1::PlaceLayersRequest&) -> absl::StatusOr<laminad::v1::PlaceLayersResponse> {
          asked_.set_value();
          return laminad_->WaitCancelled(seconds(60));
        });
    create_ = std::async(std::launch::async, [&] { return Create("web"); });
    asked_.get_future().get();
  }
  std::promise<void> asked_;
  std::future<absl::Status> create_;
};

TEST_F(PlacingTest, EndsWithItsContainersDeletion) {
  ASSERT_OK(containers().Delete("web", "", In(seconds(30))));
  EXPECT_THAT(create_.get(), HasStatus(StatusCode::kCancelled, ""));
  ExpectContainers({});
}

TEST_F(PlacingTest, EndsWithItsContainersKill) {
  ASSERT_OK(containers().Signal("web", "", SIGKILL, true));
  EXPECT_THAT(create_.get(), HasStatus(StatusCode::kCancelled, ""));
}

TEST_F(PlacingTest, EndsWithItsPod) {
  ASSERT_OK(sandbox_->Delete(In(seconds(30))));
  EXPECT_THAT(create_.get(), HasStatus(StatusCode::kCancelled, ""));
  ExpectNothingLeft();
  EXPECT_TRUE(sandbox_->IsEmpty(nullptr));
}

TEST_F(ContainersTest, AnExecThatNobodyWaitsForAnyMoreIsUndone) {
  Run("web");
  containerd::ExecProcessRequest request;
  request.set_id("web");
  request.set_exec_id("e1");
  EXPECT_THAT(containers().CreateExec(request, In(milliseconds(0))),
              HasStatus(StatusCode::kDeadlineExceeded, "undone"));
  EXPECT_THAT(containers().Find("web", "e1"), HasStatus(StatusCode::kNotFound, "e1"));
  ASSERT_OK(containers().CreateExec(request, std::nullopt));
  EXPECT_THAT(containers().CreateExec(request, std::nullopt), HasStatus(StatusCode::kAlreadyExists, "e1"));
  ASSERT_OK(containers().Start("web", "e1"));
  ASSERT_OK(containers().Signal("web", "e1", SIGKILL, false));
  EXPECT_EQ((*containers().Find("web", "e1"))->WaitExit().status, 137U);
  ASSERT_OK(containers().Delete("web", "e1", std::nullopt));
}

TEST_F(ContainersTest, AProcessThatDoesNotStartHasEnded) {
  ASSERT_OK(Create("web"));
  guest_.calls->Handle(
      guest::kStartProcess,
      [](const agent::v1::ProcessRequest&) -> absl::StatusOr<agent::v1::StartProcessResponse> {
        return absl::NotFoundError("sh: not found");
      });
  EXPECT_THAT(containers().Start("web", ""), HasStatus(StatusCode::kNotFound, "sh"));
  EXPECT_EQ((*containers().Find("web", ""))->WaitExit().status, 127U);
  EXPECT_THAT(containers().Start("web", ""), HasStatus(StatusCode::kFailedPrecondition, "ended"));
  ASSERT_OK(containers().Delete("web", "", std::nullopt));
  ExpectContainers({});
}

}  // namespace
}  // namespace lamina::cri
