#include <gtest/gtest.h>
#include <signal.h>

#include "tests/integration/guest/pod.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

// A container that stays while others are executed in it.
class ExecTest : public ::testing::Test {
 protected:
  ExecTest() {
    ContainerOptions options;
    options.args = {"/bin/sh", "-c", "echo ready; exec sleep 100000"};
    container_ = std::make_unique<TestContainer>(vm_, options);
    EXPECT_OK(container_->created());
    EXPECT_OK(container_->Start());
    container_->out().UntilContains("ready");
  }
  GuestVm& vm_ = GuestVm::Shared();
  std::unique_ptr<TestContainer> container_;
};

TEST_F(ExecTest, OutputInputAndExitStatusAreItsOwn) {
  const auto result = container_->Exec({"/bin/sh", "-c", "cat; echo err >&2; exit 3"}, "input");
  ASSERT_OK(result.status);
  EXPECT_EQ(result.exit_status, 3u);
  EXPECT_EQ(result.out, "input");
  EXPECT_EQ(result.err, "err\n");
}

TEST_F(ExecTest, ItRunsInsideTheContainer) {
  const auto result = container_->Exec({"/bin/sh", "-c", "cat /proc/1/cmdline; cat /proc/self/cgroup"});
  ASSERT_OK(result.status);
  EXPECT_EQ(result.out.substr(0, 5), "sleep");
  EXPECT_NE(result.out.find("0::/\n"), std::string::npos) << result.out;
}

TEST_F(ExecTest, AMissingProgramIsNotFoundAndTheContainerLivesOn) {
  const auto result = container_->Exec({"/bin/nothing-here"});
  EXPECT_THAT(result.status, testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_NE(std::string(result.status.message()).find("nothing-here"), std::string::npos) << result.status;
  EXPECT_OK(container_->Exec({"/bin/true"}).status);
}

TEST_F(ExecTest, SignalsAndTheContainersEndEndIt) {
  agent::v1::ExecCreateRequest request;
  request.set_container_id(container_->id());
  request.set_process_json(ProcessJson({"/bin/sleep", "1000"}));
  for (const char* exec_id : {"one", "two"}) {
    request.set_exec_id(exec_id);
    ASSERT_OK(vm_.Call(kExecCreate, request));
    EXPECT_THAT(vm_.Call(kExecCreate, request), testing::HasStatus(absl::StatusCode::kAlreadyExists));
    EXPECT_THAT(container_->Signal(SIGTERM, exec_id),
                testing::HasStatus(absl::StatusCode::kFailedPrecondition));
    ASSERT_OK(container_->Start(exec_id));
    EXPECT_THAT(container_->Start(exec_id), testing::HasStatus(absl::StatusCode::kFailedPrecondition));
  }
  ASSERT_OK(container_->Signal(SIGTERM, "one"));
  EXPECT_EQ(container_->Wait("one").exit_status(), 143u);
  ASSERT_OK(container_->Signal(SIGKILL));
  EXPECT_EQ(container_->Wait("two").exit_status(), 137u);
  EXPECT_EQ(container_->Wait().exit_status(), 137u);
  request.set_exec_id("three");
  ASSERT_OK(vm_.Call(kExecCreate, request));
  EXPECT_THAT(container_->Start("three"), testing::HasStatus(absl::StatusCode::kFailedPrecondition))
      << "the container has ended";
}

TEST_F(ExecTest, UnknownOnesAreNotFound) {
  EXPECT_THAT(container_->Start("nobody"), testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_THAT(container_->Signal(SIGTERM, "nobody"), testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_OK(container_->Delete("nobody"));
  agent::v1::ExecCreateRequest request;
  request.set_container_id("nobody");
  request.set_exec_id("x");
  request.set_process_json(ProcessJson({"/bin/true"}));
  EXPECT_THAT(vm_.Call(kExecCreate, request), testing::HasStatus(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace lamina::guest
