#include "node/host.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/file_system.h"
#include "base/subprocess.h"
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

TEST(RealHost, SeesThisProcess) {
  Host& host = Host::Real();
  const absl::StatusOr<uint64_t> start_time = ProcessStartTime(getpid());
  ASSERT_TRUE(start_time.ok());
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
