#include "guest/agent/guest_clock.h"

#include <gtest/gtest.h>

namespace lamina::guest {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;
using Way = ClockChange::Way;

TEST(GuestClock, IsSteppedBeforeThereAreContainers) {
  EXPECT_EQ(PlanClock(milliseconds(2900), false).way, Way::kStep);
  EXPECT_EQ(PlanClock(milliseconds(-10), false).way, Way::kStep);
  EXPECT_EQ(PlanClock(nanoseconds(900'000), false).way, Way::kNone);
}

TEST(GuestClock, IsSlewedOnceThereAreContainers) {
  for (const milliseconds offset : {milliseconds(100), milliseconds(-1500), milliseconds(2000)}) {
    const ClockChange change = PlanClock(offset, true);
    ASSERT_EQ(change.way, Way::kSlew);
    // What the tick gains or loses in that time is the offset.
    EXPECT_EQ(change.lasts * (change.tick - 10'000) / 10'000, nanoseconds(offset));
    // The kernel takes no more than a tenth.
    EXPECT_GE(change.tick, 9'000);
    EXPECT_LE(change.tick, 11'000);
  }
  EXPECT_EQ(PlanClock(milliseconds(4), true).way, Way::kNone);
  EXPECT_EQ(PlanClock(milliseconds(-4), true).way, Way::kNone);
}

TEST(GuestClock, WhatIsNoDriftIsSteppedAllTheSame) {
  EXPECT_EQ(PlanClock(seconds(3), true).way, Way::kStep);
  EXPECT_EQ(PlanClock(seconds(-3600), true).way, Way::kStep);
}

}  // namespace
}  // namespace lamina::guest
