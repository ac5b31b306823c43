#include "guest/agent/cgroup.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <limits>

#include "proto/agent.pb.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

class CgroupTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/lamina-cgroup-XXXXXX";
    ASSERT_NE(mkdtemp(pattern), nullptr);
    root_ = pattern;
    std::filesystem::create_directories(root_ + "/lamina/c1/inner");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& file, const std::string& text) {
    std::ofstream(root_ + "/lamina/c1/" + file) << text;
  }
  std::string root_;
};

TEST_F(CgroupTest, StatsComeFromTheFilesOfVersion2) {
  Write("cpu.stat",
        "usage_usec 12\nuser_usec 7\nsystem_usec 5\nnr_periods 3\nnr_throttled 2\nthrottled_usec 9\n");
  Write("memory.current", "4096\n");
  Write("memory.max", "max\n");
  Write("memory.stat", "anon 1\nfile 2\n");
  Write("memory.events", "oom 1\noom_kill 2\n");
  Write("pids.current", "4\n");
  Write("pids.max", "100\n");
  const auto stats = Cgroup(root_, "/lamina/c1").Stats();
  ASSERT_OK(stats);
  EXPECT_EQ(stats->cpu_usage_usec(), 12u);
  EXPECT_EQ(stats->cpu_throttled_periods(), 2u);
  EXPECT_EQ(stats->memory_usage_bytes(), 4096u);
  EXPECT_EQ(stats->memory_limit_bytes(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(stats->memory_stat().at("file"), 2u);
  EXPECT_EQ(stats->memory_oom_kill(), 2u);
  EXPECT_EQ(stats->pids_limit(), 100u);
}

TEST_F(CgroupTest, AMissingCgroupIsNotFound) {
  const Cgroup cgroup(root_, "/lamina/none");
  EXPECT_THAT(cgroup.Stats(), testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_THAT(cgroup.OomKills(), testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_THAT(cgroup.Pids(), testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_OK(cgroup.KillAll());
}

TEST_F(CgroupTest, PidsOfInnerCgroupsCount) {
  Write("cgroup.procs", "10\n11\n");
  Write("inner/cgroup.procs", "12\n");
  EXPECT_EQ(*Cgroup(root_, "/lamina/c1").Pids(), (std::vector<uint32_t>{10, 11, 12}));
}

}  // namespace
}  // namespace lamina::guest
