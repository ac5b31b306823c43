#include <gtest/gtest.h>
#include <signal.h>

#include "tests/integration/guest/pod.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

using agent::v1::Empty;
using agent::v1::GuestInfoResponse;

ContainerOptions Shell(const std::string& script) {
  ContainerOptions options;
  options.args = {"/bin/sh", "-c", script};
  return options;
}

TEST(Container, OutputErrorsAndExitStatusArrive) {
  GuestVm& vm = GuestVm::Shared();
  TestContainer container(vm, Shell("echo out; echo err >&2; exit 7"));
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  EXPECT_OK(container.Start()) << "starting it again finds it started";
  const auto exit = container.Wait();
  EXPECT_EQ(exit.exit_status(), 7u);
  EXPECT_FALSE(exit.oom_killed());
  EXPECT_EQ(container.out().ToEnd(), "out\n");
  EXPECT_EQ(container.err().ToEnd(), "err\n");
  EXPECT_EQ(container.Wait().exit_status(), 7u) << "a wait after the end answers too";
}

TEST(Container, WhatIsWrittenBeforeTheEndIsNotLostInBulk) {
  GuestVm& vm = GuestVm::Shared();
  TestContainer container(vm, Shell("yes 0123456789abcde | head -c 8388608"));
  ASSERT_OK(container.created());
  const auto start = std::chrono::steady_clock::now();
  ASSERT_OK(container.Start());
  EXPECT_EQ(container.out().ToEnd().size(), 8388608u);
  EXPECT_EQ(container.Wait().exit_status(), 0u);
  printf("8 MiB of output: %.2f s\n",
         std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

TEST(Container, InputReachesItToTheLastByte) {
  GuestVm& vm = GuestVm::Shared();
  ContainerOptions options = Shell("wc -c");
  options.stdin_stream = true;
  TestContainer container(vm, options);
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  SendInput(vm, container.in_stream(), std::string(1 << 20, 'x'), true);
  EXPECT_EQ(container.Wait().exit_status(), 0u);
  EXPECT_EQ(container.out().ToEnd(), "1048576\n");
}

TEST(Container, TheSpecIsEnforced) {
  GuestVm& vm = GuestVm::Shared();
  TestContainer container(
      vm,
      Shell("grep -E '^(NoNewPrivs|Seccomp|CapEff):' /proc/self/status; cat /proc/kcore | wc -c; ps | wc -l;"
            "hostname x 2>&1; touch /proc/sysrq-trigger 2>&1; echo $$; cat /proc/self/cgroup; head -c 3 "
            "/dev/zero | wc -c;"
            "grep -c . /sys/fs/cgroup/cgroup.controllers"));
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  container.Wait();
  const std::string out = container.out().ToEnd();
  EXPECT_NE(out.find("NoNewPrivs:\t1"), std::string::npos) << out;
  EXPECT_NE(out.find("Seccomp:\t2"), std::string::npos) << out;
  EXPECT_NE(out.find("CapEff:\t00000000080020eb"), std::string::npos) << out;
  EXPECT_NE(out.find("hostname: sethostname: Function not implemented"), std::string::npos) << out;
  EXPECT_NE(out.find("Read-only file system"), std::string::npos) << out;
  EXPECT_NE(out.find("\n1\n0::/\n3\n1\n"), std::string::npos) << out;
}

TEST(Container, AMissingProgramIsNotFoundInCrunsWordsAndLeavesNothing) {
  GuestVm& vm = GuestVm::Shared();
  BusyboxLayer(vm);
  const auto before = vm.Call(kGuestInfo, Empty());
  ContainerOptions options;
  options.args = {"/bin/nothing-here"};
  TestContainer container(vm, options);
  EXPECT_THAT(container.created(), testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_NE(std::string(container.created().message()).find("nothing-here"), std::string::npos)
      << container.created();
  const auto after = vm.Call(kGuestInfo, Empty());
  ASSERT_OK(before);
  ASSERT_OK(after);
  EXPECT_EQ(before->mounts(), after->mounts());
}

TEST(Container, RequestsThatCannotBeAreRefused) {
  GuestVm& vm = GuestVm::Shared();
  agent::v1::CreateContainerRequest request;
  request.set_container_id("../x");
  request.set_spec_json(SpecJson({}));
  request.add_layer_ids(BusyboxLayer(vm));
  const auto create = [&] { return vm.Call(kCreateContainer, request).status(); };
  EXPECT_THAT(create(), testing::HasStatus(absl::StatusCode::kInvalidArgument));
  request.set_container_id("fine");
  request.set_spec_json("{");
  EXPECT_THAT(create(), testing::HasStatus(absl::StatusCode::kInvalidArgument));
  request.set_spec_json(SpecJson({}));
  request.set_layer_ids(0, LayerId(0xffff));
  EXPECT_THAT(create(), testing::HasStatus(absl::StatusCode::kNotFound));
  request.clear_layer_ids();
  EXPECT_THAT(create(), testing::HasStatus(absl::StatusCode::kInvalidArgument))
      << "a root outside the shared directory";
}

TEST(Container, AnIdIsTakenOnce) {
  GuestVm& vm = GuestVm::Shared();
  TestContainer container(vm, Shell("true"));
  ASSERT_OK(container.created());
  agent::v1::CreateContainerRequest request;
  request.set_container_id(container.id());
  request.set_spec_json(SpecJson({}));
  request.add_layer_ids(BusyboxLayer(vm));
  EXPECT_THAT(vm.Call(kCreateContainer, request), testing::HasStatus(absl::StatusCode::kAlreadyExists));
}

TEST(Container, SignalsReachItAndASecondOneFindsItGone) {
  GuestVm& vm = GuestVm::Shared();
  TestContainer container(vm, Shell("trap 'exit 9' TERM; echo ready; while true; do sleep 0.05; done"));
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  container.out().UntilContains("ready");
  ASSERT_OK(container.Signal(SIGTERM));
  EXPECT_EQ(container.Wait().exit_status(), 9u);
  EXPECT_THAT(container.Signal(SIGTERM), testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_THAT(container.Signal(0), testing::HasStatus(absl::StatusCode::kInvalidArgument));
}

TEST(Container, KillAllEndsEveryProcess) {
  GuestVm& vm = GuestVm::Shared();
  TestContainer container(vm, Shell("sleep 1000 & sleep 1000 & echo ready; wait"));
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  container.out().UntilContains("ready");
  const auto pids = vm.Call(kPids, container.Request());
  ASSERT_OK(pids);
  EXPECT_EQ(pids->pids_size(), 3);
  ASSERT_OK(container.Signal(SIGKILL, "", true));
  EXPECT_EQ(container.Wait().exit_status(), 137u);
}

TEST(Container, DeletingARunningOneKillsItAndASecondDeleteIsFine) {
  GuestVm& vm = GuestVm::Shared();
  TestContainer container(vm, Shell("sleep 1000"));
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  EXPECT_OK(container.Delete());
  EXPECT_OK(container.Delete());
  EXPECT_THAT(container.Start(), testing::HasStatus(absl::StatusCode::kNotFound));
}

TEST(Container, ACreatedOneThatNeverStartsCanBeKilledAndDeleted) {
  GuestVm& vm = GuestVm::Shared();
  TestContainer container(vm, Shell("echo never"));
  ASSERT_OK(container.created());
  ASSERT_OK(container.Signal(SIGKILL));
  EXPECT_EQ(container.Wait().exit_status(), 137u);
  EXPECT_EQ(container.out().ToEnd(), "");
}

}  // namespace
}  // namespace lamina::guest
