#include <gtest/gtest.h>

#include <limits>

#include "tests/integration/guest/pod.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

using agent::v1::ContainerStats;

TEST(Limits, StatsTellUsageAndLimits) {
  GuestVm& vm = GuestVm::Shared();
  ContainerOptions options;
  options.args = {"/bin/sh", "-c",
                  "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo ready; exec sleep 100000"};
  options.resources_json =
      R"({"memory":{"limit":33554432},"pids":{"limit":50},"cpu":{"quota":50000,"period":100000},
    "hugepageLimits":[{"pageSize":"2MB","limit":0},{"pageSize":"64KB","limit":0}]})";
  TestContainer container(vm, options);
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  container.out().UntilContains("ready");
  const auto stats = vm.Call(kContainerStats, container.Request());
  ASSERT_OK(stats);
  EXPECT_GT(stats->cpu_usage_usec(), 0u);
  EXPECT_GT(stats->cpu_periods(), 0u);
  EXPECT_GT(stats->memory_usage_bytes(), 0u);
  EXPECT_EQ(stats->memory_limit_bytes(), 33554432u);
  EXPECT_EQ(stats->pids_current(), 1u);
  EXPECT_EQ(stats->pids_limit(), 50u);
  EXPECT_GT(stats->memory_stat().count("anon"), 0u);

  agent::v1::UpdateContainerRequest update;
  update.set_container_id(container.id());
  update.set_resources_json(R"({"memory":{"limit":67108864},"pids":{"limit":60}})");
  const auto updated = vm.Call(kUpdateContainer, update);
  ASSERT_OK(updated);
  const auto after = vm.Call(kContainerStats, container.Request());
  ASSERT_OK(after);
  EXPECT_EQ(after->memory_limit_bytes(), 67108864u);
  EXPECT_EQ(after->pids_limit(), 60u);
}

TEST(Limits, AnOomKillIsToldWithTheExit) {
  GuestVm& vm = GuestVm::Shared();
  ContainerOptions options;
  // tail keeps the one endless line in memory.
  options.args = {"/bin/sh", "-c", "exec tail /dev/zero"};
  options.resources_json = R"({"memory":{"limit":16777216,"swap":16777216}})";
  TestContainer container(vm, options);
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  const auto exit = container.Wait();
  EXPECT_EQ(exit.exit_status(), 137u);
  EXPECT_TRUE(exit.oom_killed());
}

TEST(Limits, APausedContainerStandsStill) {
  GuestVm& vm = GuestVm::Shared();
  ContainerOptions options;
  options.args = {"/bin/sh", "-c", "echo ready; while true; do :; done"};
  TestContainer container(vm, options);
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  container.out().UntilContains("ready");
  ASSERT_OK(vm.Call(kPauseContainer, container.Request()));
  const auto usage = [&] {
    const auto stats = vm.Call(kContainerStats, container.Request());
    EXPECT_OK(stats);
    return stats.ok() ? stats->cpu_usage_usec() : 0;
  };
  // Freezing takes effect when each process next leaves the kernel: two equal readings in a row show it.
  uint64_t last = usage();
  int equal = 0;
  for (int i = 0; i < 200 && equal < 3; ++i) {
    const uint64_t now = usage();
    equal = now == last ? equal + 1 : 0;
    last = now;
  }
  EXPECT_EQ(equal, 3) << "it still runs";
  ASSERT_OK(vm.Call(kResumeContainer, container.Request()));
  uint64_t resumed = last;
  for (int i = 0; i < 200 && resumed == last; ++i) resumed = usage();
  EXPECT_GT(resumed, last);
}

}  // namespace
}  // namespace lamina::guest
