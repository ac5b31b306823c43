#include "sizing/balloon_plan.h"

#include <gtest/gtest.h>

#include <random>

#include "base/units.h"
#include "tests/testing/status_matchers.h"

namespace lamina::sizing {
namespace {

using testing::HasStatus;

TEST(BalloonPlan, TheFloorIsWhatIsUsedAndAMargin) {
  EXPECT_EQ(BalloonFloor(512 * kMiB, 200 * kMiB, 64 * kMiB, 128 * kMiB), 264 * kMiB);
  EXPECT_EQ(BalloonFloor(512 * kMiB, 10 * kMiB, 64 * kMiB, 128 * kMiB), 128 * kMiB);
  EXPECT_EQ(BalloonFloor(512 * kMiB, 500 * kMiB, 64 * kMiB, 128 * kMiB), 512 * kMiB);
  EXPECT_EQ(BalloonFloor(512 * kMiB, UINT64_MAX, 64 * kMiB, 128 * kMiB), 512 * kMiB);
  EXPECT_EQ(BalloonFloor(96 * kMiB, 0, 64 * kMiB, 128 * kMiB), 96 * kMiB);
}

TEST(BalloonPlan, AllGiveTheSameFraction) {
  const auto gives = PlanLowering({{"a", 400 * kMiB}, {"b", 200 * kMiB}, {"c", 0}}, 300 * kMiB);
  ASSERT_OK(gives);
  EXPECT_EQ(*gives, (std::map<std::string, uint64_t>{{"a", 200 * kMiB}, {"b", 100 * kMiB}}));
  EXPECT_THAT(
      PlanLowering({{"a", 100 * kMiB}, {"b", 50 * kMiB}}, 151 * kMiB),
      HasStatus(absl::StatusCode::kResourceExhausted, "2 running VMs could give 150MiB of the 151MiB"));
  EXPECT_THAT(PlanLowering({}, 1), HasStatus(absl::StatusCode::kResourceExhausted, "0 running VMs"));
}

TEST(BalloonPlan, WhatIsPlannedIsEnoughAndNeverTooMuchOfOne) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 5000; ++round) {
    std::vector<BalloonGuest> guests;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < 1 + random() % 20; ++i) {
      guests.push_back({std::to_string(i), random() % (random() % 2 == 0 ? 3 * kMiB : 4 * kGiB)});
      sum += guests.back().can_give_bytes;
    }
    const uint64_t need = random() % (sum + 1);
    const auto gives = PlanLowering(guests, need);
    ASSERT_OK(gives);
    uint64_t given = 0;
    for (const BalloonGuest& guest : guests) {
      const auto it = gives->find(guest.id);
      if (it == gives->end()) continue;
      EXPECT_LE(it->second, guest.can_give_bytes);
      // Nobody gives more than its share and the rounding to a MiB.
      EXPECT_LE(
          static_cast<double>(it->second),
          static_cast<double>(guest.can_give_bytes) * static_cast<double>(need) / static_cast<double>(sum) +
              static_cast<double>(kMiB) + 1);
      given += it->second;
    }
    EXPECT_GE(given, need);
    const auto gets = PlanRaising(guests, need);
    uint64_t got = 0;
    for (const auto& [id, bytes] : gets) got += bytes;
    EXPECT_LE(got, need);
  }
}

TEST(BalloonPlan, WhatComesBackIsShared) {
  EXPECT_EQ(PlanRaising({{"a", 400 * kMiB}, {"b", 200 * kMiB}}, 300 * kMiB),
            (std::map<std::string, uint64_t>{{"a", 200 * kMiB}, {"b", 100 * kMiB}}));
  EXPECT_EQ(PlanRaising({{"a", 3 * kMiB + 5}}, 1 * kGiB),
            (std::map<std::string, uint64_t>{{"a", 3 * kMiB + 5}}));
  EXPECT_TRUE(PlanRaising({{"a", 400 * kMiB}}, 0).empty());
}

}  // namespace
}  // namespace lamina::sizing
