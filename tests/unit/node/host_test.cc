#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/subprocess.h"
#include "base/units.h"
#include "node/node_state.h"

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
  EXPECT_GT(host.MemTotalBytes(), host.MemAvailableBytes() / 2);
}

}  // namespace
}  // namespace lamina::node
