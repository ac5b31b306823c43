#include "node/host.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/file_system.h"
#include "base/process.h"
#include "base/units.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::node {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

TEST(PodCgroups, OfAServiceAreItsParents) {
  EXPECT_THAT(PodCgroups("0::/system.slice/laminad.service\n"),
              ElementsAre(Pair(true, ""), Pair(true, "/system.slice")));
}

// The daemon's own pod is limited; the pods beside it are not bound by that.
TEST(PodCgroups, OfAPodEndAtKubepods) {
  EXPECT_THAT(PodCgroups("0::/kubepods.slice/kubepods-burstable.slice/pod1/abc\n"),
              ElementsAre(Pair(true, ""), Pair(true, "/kubepods.slice")));
}

TEST(PodCgroups, OfVersionOneAreTheMemoryControllers) {
  EXPECT_THAT(PodCgroups("12:cpu,cpuacct:/a/b\n5:memory:/x/y/z\n"),
              ElementsAre(Pair(false, ""), Pair(false, "/x"), Pair(false, "/x/y")));
}

TEST(PodCgroups, OfNonsenseAreNone) {
  EXPECT_THAT(PodCgroups(""), ElementsAre());
  EXPECT_THAT(PodCgroups("nonsense\n:\n::\n"), ElementsAre());
}

TEST(Kubepods, AreFoundForEitherDriverAndVersion) {
  const lamina::testing::TempDir root;
  FileSystem& fs = FileSystem::Real();
  constexpr char kOwn[] = "cgroup:[4026532000]", kHosts[] = "cgroup:[4026531835]";
  EXPECT_THAT(Kubepods(root.path()), ElementsAre());
  EXPECT_EQ(HiddenCgroups(kHosts, root.path()), "");
  EXPECT_THAT(HiddenCgroups(kOwn, root.path()), ::testing::HasSubstr("cgroup:[4026532000]"));
  ASSERT_OK(fs.MakeDirectories(root / "memory/kubepods", 0700));
  ASSERT_OK(fs.WriteAndSync(root / "memory/kubepods/memory.limit_in_bytes", "4096\n", 0600));
  EXPECT_THAT(Kubepods(root.path()), ElementsAre(Pair(false, "/kubepods")));
  ASSERT_OK(fs.MakeDirectories(root / "kubepods.slice", 0700));
  ASSERT_OK(fs.WriteAndSync(root / "kubepods.slice/memory.max", "4096\n", 0600));
  EXPECT_THAT(Kubepods(root.path()), ElementsAre(Pair(true, "/kubepods.slice"), Pair(false, "/kubepods")));
  EXPECT_EQ(HiddenCgroups(kOwn, root.path()), "");
}

TEST(NumaNodes, AreReadFromTheKernelsFolder) {
  const lamina::testing::TempDir root;
  FileSystem& fs = FileSystem::Real();
  EXPECT_THAT(ReadNumaNodes(root / "absent"), ::testing::IsEmpty());
  EXPECT_THAT(ReadNumaNodes(root.path()), ::testing::IsEmpty());
  const auto add = [&](const std::string& name, const std::string& meminfo) {
    ASSERT_OK(fs.MakeDirectories(root / name, 0700));
    ASSERT_OK(fs.WriteAndSync(root / (name + "/meminfo"), meminfo, 0600));
  };
  add("node0",
      "Node 0 MemTotal:        1000 kB\nNode 0 MemFree:         100 kB\nNode 0 MemUsed:  900 kB\n"
      "Node 0 Active:            77 kB\nNode 0 Active(anon):     66 kB\nNode 0 Active(file):     20 kB\n"
      "Node 0 Inactive(file):     3 kB\nNode 0 SReclaimable:      4 kB\nNode 0 Slab:  9 kB\n");
  add("node10", "Node 10 MemTotal:       2000 kB\nNode 10 MemFree:        50 kB\n");
  add("node2", "Node 2 MemTotal:       0 kB\nNode 2 MemFree:        0 kB\n");  // of CPUs alone
  add("node128", "Node 128 MemTotal:       5 kB\n");
  add("nodes", "Node 1 MemTotal:       5 kB\n");
  add("node1x", "Node 1 MemTotal:       5 kB\n");
  add("node", "Node 1 MemTotal:       5 kB\n");
  ASSERT_OK(fs.MakeDirectories(root / "node3", 0700));
  const std::map<uint32_t, NumaMemory> nodes = ReadNumaNodes(root.path());
  ASSERT_EQ(nodes.size(), 2u);
  EXPECT_EQ(nodes.at(0).total_bytes, 1000 * kKiB);
  EXPECT_EQ(nodes.at(0).left_bytes, 127 * kKiB);
  EXPECT_EQ(nodes.at(10).total_bytes, 2000 * kKiB);
  EXPECT_EQ(nodes.at(10).left_bytes, 50 * kKiB);
}

TEST(RealHost, SeesItsNumaNodes) {
  if (!FileSystem::Real().Exists("/sys/devices/system/node/node0/meminfo"))
    GTEST_SKIP() << "a kernel without NUMA";
  const std::map<uint32_t, NumaMemory> nodes = Host::Real().NumaNodes();
  EXPECT_FALSE(nodes.empty());
  for (const auto& [number, memory] : nodes) {
    EXPECT_GT(memory.total_bytes, 64 * kMiB) << number;
    EXPECT_GT(memory.left_bytes, 0u) << number;
    EXPECT_LE(memory.left_bytes, memory.total_bytes) << number;
  }
}

TEST(RealHost, SeesThisProcess) {
  Host& host = Host::Real();
  const absl::StatusOr<uint64_t> start_time = ProcessStartTime(getpid());
  ASSERT_OK(start_time);
  EXPECT_TRUE(host.Alive(getpid(), *start_time));
  EXPECT_FALSE(host.Alive(getpid(), *start_time + 1));
  EXPECT_FALSE(host.Alive(0, 0));
  EXPECT_FALSE(host.Alive(-1, 1));
  EXPECT_GT(host.ResidentBytes(getpid()), 64 * kKiB);
  EXPECT_EQ(host.ResidentBytes(-1), 0u);
  EXPECT_GT(host.MemTotalBytes(), host.Left().bytes / 2);
  EXPECT_FALSE(host.Left().where.empty());
}

TEST(CgroupLeft, IsTheLimitLessWhatCannotBeDropped) {
  const std::string stat = "anon 100\ninactive_file 50\ntotal_inactive_file 70\n";
  EXPECT_EQ(CgroupLeft(true, 1000, 400, stat), 650u);
  EXPECT_EQ(CgroupLeft(false, 1000, 400, stat), 670u);
  EXPECT_EQ(CgroupLeft(true, 1000, 2000, ""), 0u);
  EXPECT_EQ(CgroupLeft(true, 1000, 20, stat), 1000u);
  EXPECT_EQ(CgroupLeft(true, UINT64_MAX, 400, stat), UINT64_MAX);  // no limit
}

}  // namespace
}  // namespace lamina::node
