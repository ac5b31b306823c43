// A pod's life, with a fault at each call that leaves the shim.
#include "cri/sandbox.h"

#include <gtest/gtest.h>

#include <future>

#include "guest/protocol/contract.h"
#include "tests/testing/status_matchers.h"
#include "tests/unit/cri/pod_kit.h"

namespace lamina::cri {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasStatus;

class SandboxTest : public PodTest {};

TEST_F(SandboxTest, StartsRunsAndLeavesNothing) {
  ASSERT_OK(Start());
  ASSERT_NE(sandbox_->process(), nullptr);
  const persist::SandboxState state = State();
  EXPECT_EQ(state.life_cycle, persist::LifeCycle::kReady);
  EXPECT_EQ(state.vmm.pid, sandbox_->vmm_pid());
  EXPECT_FALSE(state.boot_id.empty());
  EXPECT_THAT(Start(), HasStatus(StatusCode::kAlreadyExists, "pod"));
  EXPECT_FALSE(sandbox_->IsEmpty(nullptr));
  const auto deleted = sandbox_->Delete(std::nullopt);
  ASSERT_OK(deleted);
  EXPECT_EQ(deleted->exit.status, 0U);
  EXPECT_EQ(deleted->pid, state.vmm.pid);
  ExpectNothingLeft();
  EXPECT_TRUE(sandbox_->IsEmpty(nullptr));
  EXPECT_THAT(sandbox_->Delete(std::nullopt), HasStatus(StatusCode::kNotFound, "pod"));
}

TEST_F(SandboxTest, AFaultAtAnyCallOfItsStartLeavesNothing) {
  // What each of the three is called while a pod starts, and the last of them that may fail it.
  const auto fail = [&](auto fail_at, const char* who) {
    int failures = 0;
    for (int n = 0;; ++n, ++failures) {
      ASSERT_LT(n, 50) << who;
      MakeSandbox();
      claims_ = releases_ = 0;
      fail_at(n);
      const absl::Status status = Start();
      fail_at(-1);
      if (status.ok()) break;
      EXPECT_THAT(status, HasStatus(StatusCode::kUnavailable, "injected")) << who << ", call " << n;
      ExpectNothingLeft();
      EXPECT_TRUE(sandbox_->IsEmpty(nullptr));
    }
    EXPECT_GE(failures, 2) << who;
    ASSERT_OK(sandbox_->Delete(std::nullopt));
    ExpectNothingLeft();
  };
  fail([&](int n) { hypervisor_.FailAt(n < 0 ? n : n + static_cast<int>(hypervisor_.calls().size())); },
       "hypervisor");
  fail([&](int n) { guest_.calls->FailAt(n < 0 ? n : n + static_cast<int>(guest_.calls->calls().size())); },
       "agent");
  fail([&](int n) { laminad_->FailAt(n < 0 ? n : n + static_cast<int>(laminad_->calls().size())); },
       "laminad");
}

TEST_F(SandboxTest, AStartThatIsStoppedIsUndoneAtOnceAndTheShimMayEnd) {
  std::promise<void> asked;
  guest_.calls->Handle(guest::kHello,
                       [&](const agent::v1::HelloRequest&) -> absl::StatusOr<agent::v1::HelloResponse> {
                         asked.set_value();
                         return guest_.calls->WaitCancelled(seconds(60));  // a guest that does not boot
                       });
  auto start = std::async(std::launch::async, [&] { return Start(); });
  asked.get_future().get();
  EXPECT_EQ(State().life_cycle, persist::LifeCycle::kCreating);
  const auto deleted = sandbox_->Delete(In(seconds(30)));
  ASSERT_OK(deleted);
  EXPECT_EQ(deleted->exit.status, 137U);
  EXPECT_THAT(start.get(), HasStatus(StatusCode::kCancelled, "stopped"));
  ExpectNothingLeft();
  EXPECT_TRUE(sandbox_->IsEmpty(nullptr));
}

TEST_F(SandboxTest, ShutdownOfAStartThatWasGivenUpEndsTheShimOnceItIsUndone) {
  std::promise<void> asked, go_on;
  hypervisor_.BeforeEach([&](const std::string& call) {
    if (call.rfind("Start ", 0) == 0) {
      asked.set_value();
      go_on.get_future().get();
    }
    return absl::OkStatus();
  });
  auto start = std::async(std::launch::async, [&] { return Start(); });
  asked.get_future().get();
  std::promise<void> shut_down;
  EXPECT_FALSE(sandbox_->IsEmpty([] { FAIL() << "nobody has given it up yet"; }));
  EXPECT_THAT(sandbox_->Delete(In(milliseconds(10))), HasStatus(StatusCode::kDeadlineExceeded, "undone"));
  EXPECT_FALSE(sandbox_->IsEmpty([&] { shut_down.set_value(); }));
  go_on.set_value();
  shut_down.get_future().get();
  EXPECT_THAT(start.get(), HasStatus(StatusCode::kCancelled, "stopped"));
  ExpectNothingLeft();
}

TEST_F(SandboxTest, AStartThatTookLongerThanItsCallerWaitsIsUndone) {
  EXPECT_THAT(Start(In(milliseconds(0))), HasStatus(StatusCode::kDeadlineExceeded, "within the time"));
  ExpectNothingLeft();
}

TEST_F(SandboxTest, AKillThatTimedOutIsTriedAgain) {
  ASSERT_OK(Start());
  hypervisor_.KillTimesOut(1);
  EXPECT_THAT(sandbox_->Stop(std::nullopt), HasStatus(StatusCode::kDeadlineExceeded, ""));
  EXPECT_GT(hypervisor_.processes(), 0U);
  ASSERT_OK(sandbox_->Stop(std::nullopt));
  EXPECT_EQ(sandbox_->process()->WaitExit().status, 0U);
  ASSERT_OK(sandbox_->Delete(std::nullopt));
  ExpectNothingLeft();
}

TEST_F(SandboxTest, AVmThatEndsByItselfEndsAllThatRan) {
  ASSERT_OK(Start());
  Run("web");
  const auto web = sandbox_->containers().Find("web", "");
  hypervisor_.EndVm();
  EXPECT_EQ((*web)->WaitExit().status, 255U);
  EXPECT_EQ(sandbox_->process()->WaitExit().status, 255U);
  ASSERT_OK(sandbox_->Delete(std::nullopt));
  ExpectNothingLeft();
  // containerd deletes the container afterwards.
  const auto deleted = sandbox_->containers().Delete("web", "", std::nullopt);
  ASSERT_OK(deleted);
  EXPECT_EQ(deleted->exit.status, 255U);
  EXPECT_TRUE(sandbox_->IsEmpty(nullptr));
}

TEST_F(SandboxTest, VirtiofsdsEndIsTheVms) {
  ASSERT_OK(Start());
  hypervisor_.EndVirtiofsd();
  EXPECT_EQ(sandbox_->process()->WaitExit().status, 255U);
  ASSERT_OK(sandbox_->Delete(std::nullopt));
  ExpectNothingLeft();
}

TEST_F(SandboxTest, ALostConnectionIsMadeAnewAndNobodyNotices) {
  ASSERT_OK(Start());
  Run("web");
  guest_.BreakConnections();
  ASSERT_OK(Create("db"));
  EXPECT_GE(guest_.connections(), 2);
  guest_.End("web", 3);
  EXPECT_EQ((*sandbox_->containers().Find("web", ""))->WaitExit().status, 3U);
}

TEST_F(SandboxTest, AGuestThatAnswersNoMoreEndsThePodWithAReason) {
  ASSERT_OK(Start());
  guest_.calls->Handle(guest::kHello,
                       [&](const agent::v1::HelloRequest&) -> absl::StatusOr<agent::v1::HelloResponse> {
                         return absl::FailedPreconditionError("I speak another tongue");
                       });
  guest_.BreakConnections();
  EXPECT_THAT(Create("web"), HasStatus(StatusCode::kFailedPrecondition, "does not answer any more"));
  EXPECT_EQ(sandbox_->process()->WaitExit().status, 255U);
  EXPECT_NE(sandbox_->Info()["ended"].find("another tongue"), std::string::npos);
}

TEST_F(SandboxTest, NoContainerWithoutItsSandbox) {
  const containerd::CreateTaskRequest request = ContainerRequest("web");
  EXPECT_THAT(sandbox_->Start("web", request.bundle(), std::nullopt),
              HasStatus(StatusCode::kFailedPrecondition, "its sandbox does not run"));
  EXPECT_EQ(claims_, 0);
}

}  // namespace
}  // namespace lamina::cri
