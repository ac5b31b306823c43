// The balloon of a real guest, as laminad reaches it.
#include <gtest/gtest.h>
#include <poll.h>

#include <functional>

#include "base/file_system.h"
#include "base/units.h"
#include "tests/integration/vmm/machine.h"
#include "tests/testing/status_matchers.h"
#include "vmm/balloon_door.h"

namespace lamina::vmm {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

// Asks until it is so, at most two minutes: emulation on a busy machine is slow.
absl::StatusOr<BalloonSample> Until(Balloon& balloon,
                                    const std::function<bool(const BalloonSample&)>& holds) {
  const auto deadline = steady_clock::now() + seconds(120);
  for (;;) {
    ASSIGN_OR_RETURN(const BalloonSample sample, balloon.Sample());
    if (holds(sample)) return sample;
    if (steady_clock::now() > deadline) return absl::DeadlineExceededError("the guest does not come to it");
    poll(nullptr, 0, 50);
  }
}

TEST(Balloon, TakesAndGivesBackWhatTheGuestDoesNotUse) {
  const auto machine = Machine::Boot({});
  ASSERT_OK(machine);
  const auto door = BalloonDoor::Open((*machine)->dir(), (*machine)->vm().balloon());
  ASSERT_OK(door);
  const auto balloon = ConnectBalloon((*machine)->dir(), seconds(10));
  ASSERT_OK(balloon);
  auto sample = Until(**balloon, [](const BalloonSample& s) { return s.stats_unix_seconds != 0; });
  ASSERT_OK(sample);
  EXPECT_EQ(sample->base_bytes, 192 * kMiB);
  EXPECT_EQ(sample->actual_bytes, 192 * kMiB);
  EXPECT_GT(sample->used_bytes, 32 * kMiB);
  EXPECT_LT(sample->used_bytes, 128 * kMiB);
  const uint64_t used = sample->used_bytes;

  const uint64_t lower = 160 * kMiB;
  const auto begin = steady_clock::now();
  ASSERT_OK((*balloon)->SetTarget(lower));
  ASSERT_OK(Until(**balloon, [&](const BalloonSample& s) { return s.actual_bytes <= lower; }));
  printf("32 MiB given in %.2f s, %llu MiB in use\n",
         std::chrono::duration<double>(steady_clock::now() - begin).count(),
         static_cast<unsigned long long>(used / kMiB));
  // The balloon's own pages are not taken for the guest's need.
  const int64_t asked = sample->stats_unix_seconds;
  sample = Until(**balloon,
                 [&](const BalloonSample& s) { return s.stats_unix_seconds > asked + kBalloonStatsSeconds; });
  ASSERT_OK(sample);
  EXPECT_NEAR(static_cast<double>(sample->used_bytes), static_cast<double>(used), 16.0 * kMiB);

  EXPECT_OK((*machine)->vm().Alive());
  EXPECT_THAT((*balloon)->SetTarget(193 * kMiB), testing::HasStatus(absl::StatusCode::kInvalidArgument));
  ASSERT_OK((*balloon)->SetTarget(192 * kMiB));
  EXPECT_OK(Until(**balloon, [](const BalloonSample& s) { return s.actual_bytes == s.base_bytes; }));
  ASSERT_OK((*machine)->vm().Kill(seconds(10)));
  EXPECT_THAT((*balloon)->Sample(), testing::HasStatus(absl::StatusCode::kUnavailable));
}

}  // namespace
}  // namespace lamina::vmm
