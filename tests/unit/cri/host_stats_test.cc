#include "cri/host_stats.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "cri/messages.h"
#include "proto/containerd/cgroups.pb.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

class HostStatsTest : public ::testing::Test {
 protected:
  void Process(int64_t pid, const std::string& stat, const std::string& status) {
    const std::string dir = proc_ / std::to_string(pid);
    std::filesystem::create_directories(dir);
    std::ofstream(dir + "/stat") << stat;
    std::ofstream(dir + "/status") << status;
  }
  testing::TempDir proc_;
};

TEST_F(HostStatsTest, AddsBothProcessesAndCountsTheGuestsMemoryOnce) {
  // Fields 10, 12, 14 and 15 are minor and major faults, user and system ticks; a name may hold anything.
  Process(10, "10 (qemu) 1 (x) S 1 1 1 0 -1 0 100 0 3 0 200 50 0 0\n",
          "RssAnon:\t 8 kB\nRssShmem:\t 16 kB\n");
  Process(20, "20 (virtiofsd) S 1 1 1 0 -1 0 10 0 1 0 100 100 0 0\n", "RssAnon:\t 2 kB\nRssShmem:\t 16 kB\n");
  const auto stats = HostStats({10, 20, 1 << 20}, proc_ / "");
  EXPECT_EQ(stats.pids_current(), 2U);
  EXPECT_EQ(stats.cpu_user_usec(), 3'000'000U);
  EXPECT_EQ(stats.cpu_system_usec(), 1'500'000U);
  EXPECT_EQ(stats.cpu_usage_usec(), 4'500'000U);
  EXPECT_EQ(stats.memory_usage_bytes(), (8 + 2 + 16) * 1024U);
  EXPECT_EQ(stats.memory_stat().at("pgfault"), 114U);
  EXPECT_EQ(stats.memory_limit_bytes(), 1U << 20);
}

TEST_F(HostStatsTest, WhatIsNotThereAddsNothing) {
  Process(10, "10 (qemu", "");
  const auto stats = HostStats({10, 0, 5}, proc_ / "");
  EXPECT_EQ(stats.pids_current(), 0U);
  EXPECT_EQ(stats.memory_usage_bytes(), 0U);
}

TEST(Messages, MetricsSayWhatTheStatsSay) {
  agent::v1::ContainerStats stats;
  stats.set_cpu_usage_usec(7);
  stats.set_memory_usage_bytes(9);
  (*stats.mutable_memory_stat())["anon"] = 4;
  stats.set_memory_oom_kill(2);
  const containerd::Any any = MetricsOf(stats);
  EXPECT_EQ(any.type_url(), "io.containerd.cgroups.v2.Metrics");
  containerd::cgroups::Metrics metrics;
  ASSERT_TRUE(metrics.ParseFromString(any.value()));
  EXPECT_EQ(metrics.cpu().usage_usec(), 7U);
  EXPECT_EQ(metrics.memory().usage(), 9U);
  EXPECT_EQ(metrics.memory().anon(), 4U);
  EXPECT_EQ(metrics.memory_events().oom_kill(), 2U);
}

TEST(Messages, AnExitNamesTheExecOrTheContainer) {
  const Process init("web", "", "", {}, nullptr), exec("web", "e1", "", {}, nullptr);
  EXPECT_EQ(ExitEvent(init, 5, {3, 1'500'000'000}).id(), "web");
  const containerd::TaskExit event = ExitEvent(exec, 5, {3, 1'500'000'000});
  EXPECT_EQ(event.id(), "e1");
  EXPECT_EQ(event.container_id(), "web");
  EXPECT_EQ(event.pid(), 5U);
  EXPECT_EQ(event.exit_status(), 3U);
  EXPECT_EQ(event.exited_at().seconds(), 1);
  EXPECT_EQ(event.exited_at().nanos(), 500'000'000);
}

}  // namespace
}  // namespace lamina::cri
