#include "cri/host_limits.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/file_system.h"
#include "base/units.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

using testing::HasStatus;

class HostLimitsTest : public ::testing::Test {
 protected:
  // A controller's file, as the kernel would show it.
  void Put(const std::string& file, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(dir_ / file).parent_path());
    std::ofstream(dir_ / file, std::ios::trunc) << text;
  }
  std::string Get(const std::string& file) { return FileSystem::Real().Read(dir_ / file, 64).value_or("-"); }

  testing::TempDir dir_;
};

TEST_F(HostLimitsTest, OfVersionTwo) {
  for (const char* file : {"memory.max", "memory.swap.max", "pids.max"}) Put(file, "max\n");
  Put("memory.events", "low 0\nhigh 3\nmax 12\noom 4\noom_kill 2\noom_group_kill 0\n");
  ASSERT_OK(LimitMemory({dir_.path()}, 300 * kMiB));
  ASSERT_OK(LimitTasks({dir_.path()}, 260));
  EXPECT_EQ(Get("memory.max"), "314572800");
  EXPECT_EQ(Get("memory.swap.max"), "0");
  EXPECT_EQ(Get("pids.max"), "260");
  EXPECT_EQ(OomKills({dir_.path()}), 2U);
}

TEST_F(HostLimitsTest, OfVersionOneEachInItsHierarchy) {
  Put("cpu/p/cpu.shares", "2");
  Put("memory/p/memory.limit_in_bytes", "9223372036854771712\n");
  Put("memory/p/memory.memsw.limit_in_bytes", "9223372036854771712\n");
  Put("memory/p/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
  Put("pids/p/pids.max", "max\n");
  const std::vector<std::string> dirs = {dir_ / "cpu/p", dir_ / "memory/p", dir_ / "pids/p"};
  ASSERT_OK(LimitMemory(dirs, kGiB));
  ASSERT_OK(LimitTasks(dirs, 258));
  EXPECT_EQ(Get("memory/p/memory.limit_in_bytes"), "1073741824");
  EXPECT_EQ(Get("memory/p/memory.memsw.limit_in_bytes"), "1073741824");
  EXPECT_EQ(Get("pids/p/pids.max"), "258");
  EXPECT_EQ(OomKills(dirs), 1U);
}

TEST_F(HostLimitsTest, WithoutAControllerItIsSaid) {
  for (const std::vector<std::string>& dirs : {std::vector<std::string>{}, {dir_.path()}, {dir_ / "gone"}}) {
    EXPECT_THAT(LimitMemory(dirs, kGiB),
                HasStatus(absl::StatusCode::kNotFound, "no cgroup limits the memory"));
    EXPECT_OK(LimitTasks(dirs, 1));
    EXPECT_EQ(OomKills(dirs), 0U);
  }
}

TEST_F(HostLimitsTest, AFailureNamesFileAndValue) {
  std::filesystem::create_directory(dir_ / "memory.max");  // no file to write into, for whatever reason
  EXPECT_THAT(LimitMemory({dir_.path()}, 4096),
              HasStatus(absl::StatusCode::kInternal, "write 4096 into " + dir_.path()));
}

TEST_F(HostLimitsTest, TheSlackIsStatedAndGrowsWithTheClaim) {
  using vmm::Accel;
  EXPECT_EQ(MemoryLimit(Accel::kKvm, kGiB), kGiB + 64 * kMiB + 16 * kMiB);
  EXPECT_EQ(MemoryLimit(Accel::kTcg, kGiB), MemoryLimit(Accel::kKvm, kGiB) + vmm::kTranslatedCodeBytes);
  EXPECT_GT(TaskLimit(4), 4U + 64U) << "vCPUs and QEMU's pool of workers";
}

}  // namespace
}  // namespace lamina::cri
