#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <nlohmann/json.hpp>

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

// What Lamina adds to a bare `crun exec`: streams, a process file, four calls. Both are timed in the same
// guest, so both pay the same emulation; the bare one runs in a privileged container that sees the guest's
// own root.
TEST_F(ExecTest, TrueTakesAtMostThreeBareRuns) {
  ContainerOptions options;
  constexpr int kRuns = 10;
  options.args = {
      "/bin/sh", "-c",
      fmt::format("read start x < /guest/proc/uptime; i=0; while [ $i -lt {} ]; do i=$((i+1)); "
                  "chroot /guest /usr/bin/crun --root /run/lamina/crun --cgroup-manager=cgroupfs exec {} "
                  "/bin/true || exit 1; done; read end x < /guest/proc/uptime; echo $start $end",
                  kRuns, container_->id())};
  options.change_spec = [](std::string& text) {
    auto spec = nlohmann::json::parse(text);
    spec["linux"]["namespaces"] = {{{"type", "mount"}}};
    spec["linux"].erase("seccomp");
    spec["linux"].erase("maskedPaths");
    spec["linux"].erase("readonlyPaths");
    spec["mounts"] = {
        {{"destination", "/guest"}, {"type", "bind"}, {"source", "/"}, {"options", {"rbind", "rw"}}}};
    spec["process"]["noNewPrivileges"] = false;
    nlohmann::json all = nlohmann::json::array();
    for (const char* name :
         {"CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID", "SETPCAP", "SYS_ADMIN", "SYS_CHROOT",
          "SYS_PTRACE", "SYS_RESOURCE", "MKNOD", "NET_RAW", "NET_ADMIN", "BPF"}) {
      all.push_back(std::string("CAP_") + name);
    }
    spec["process"]["capabilities"] = {
        {"bounding", all}, {"effective", all}, {"permitted", all}, {"inheritable", all}};
    text = spec.dump();
  };
  TestContainer bare(vm_, options);
  ASSERT_OK(bare.created());
  ASSERT_OK(bare.Start());
  ASSERT_EQ(bare.Wait().exit_status(), 0u) << bare.err().ToEnd();
  const std::string times = bare.out().ToEnd();
  double start_seconds = 0, end_seconds = 0;
  ASSERT_EQ(sscanf(times.c_str(), "%lf %lf", &start_seconds, &end_seconds), 2) << times;
  const double bare_seconds = (end_seconds - start_seconds) / kRuns;

  std::vector<double> ours;
  for (int i = 0; i < kRuns; ++i) {
    const auto start = std::chrono::steady_clock::now();
    ASSERT_EQ(container_->Exec({"/bin/true"}).exit_status, 0u);
    ours.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(ours.begin(), ours.end());
  printf("exec of true: median %.3f s, fastest %.3f s; bare crun exec %.3f s\n", ours[kRuns / 2], ours[0],
         bare_seconds);
  EXPECT_LT(ours[kRuns / 2], 3 * bare_seconds);
}

}  // namespace
}  // namespace lamina::guest
