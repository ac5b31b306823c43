#include "sizing/ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "tests/testing/status_matchers.h"

namespace lamina::sizing {
namespace {

using testing::HasStatus;

TEST(Ledger, AClaimIsYesOrNo) {
  Ledger ledger(100);
  EXPECT_OK(ledger.Claim("a", 60));
  EXPECT_THAT(ledger.Claim("b", 41), HasStatus(absl::StatusCode::kResourceExhausted, "40B are available"));
  EXPECT_OK(ledger.Claim("b", 40));
  EXPECT_EQ(ledger.totals().available_bytes, 0u);
  EXPECT_THAT(ledger.Claim("c", 0), HasStatus(absl::StatusCode::kInvalidArgument, "0 bytes"));
}

TEST(Ledger, AnIdHoldsOneClaim) {
  Ledger ledger(100);
  ASSERT_OK(ledger.Claim("a", 60));
  EXPECT_THAT(ledger.Claim("a", 60), HasStatus(absl::StatusCode::kAlreadyExists, "60B already"));
  EXPECT_THAT(ledger.ClaimRange("a", 1, 10), HasStatus(absl::StatusCode::kAlreadyExists, "a"));
  EXPECT_EQ(ledger.totals().claimed_bytes, 60u);
}

TEST(Ledger, PromiseAndResidenceAreNeverAdded) {
  Ledger ledger(100);
  ASSERT_OK(ledger.Claim("a", 60));
  ledger.SetResident("a", 50);
  EXPECT_EQ(ledger.totals().claimed_bytes, 60u);
  ledger.SetResident("a", 80);
  EXPECT_EQ(ledger.totals().claimed_bytes, 80u);
  EXPECT_EQ(ledger.totals().resident_bytes, 80u);
  ledger.SetResident("a", 10);
  EXPECT_EQ(ledger.totals().claimed_bytes, 60u);
}

TEST(Ledger, StaleReleasesChangeNothing) {
  Ledger ledger(100);
  const uint64_t first = *ledger.Claim("a", 60);
  EXPECT_TRUE(ledger.Release("a", first));
  EXPECT_FALSE(ledger.Release("a", first));
  const uint64_t second = *ledger.Claim("a", 50);
  EXPECT_NE(first, second);
  EXPECT_FALSE(ledger.Release("a", first));
  EXPECT_EQ(ledger.totals().claimed_bytes, 50u);
  EXPECT_THAT(ledger.Bind("a", first), HasStatus(absl::StatusCode::kFailedPrecondition, "stale"));
  EXPECT_OK(ledger.Bind("a", second));
  EXPECT_FALSE(ledger.Dead("a", first).ok());
  EXPECT_OK(ledger.Dead("a", second));
  EXPECT_EQ(ledger.totals().claimed_bytes, 0u);
}

TEST(Ledger, GrowthNeedsRoomShrinkingDoesNot) {
  Ledger ledger(100);
  const uint64_t generation = *ledger.Claim("a", 60);
  ASSERT_OK(ledger.Claim("b", 30));
  EXPECT_THAT(ledger.Retarget("a", generation, 71),
              HasStatus(absl::StatusCode::kResourceExhausted, "11B more"));
  EXPECT_EQ(ledger.totals().claimed_bytes, 90u);
  EXPECT_OK(ledger.Retarget("a", generation, 70));
  EXPECT_OK(ledger.Retarget("a", generation, 10));
  EXPECT_EQ(ledger.totals().claimed_bytes, 40u);
}

TEST(Ledger, PressureStopsGranting) {
  Ledger ledger(100);
  ledger.SetPressure("the node is eaten into");
  EXPECT_THAT(ledger.Claim("a", 1), HasStatus(absl::StatusCode::kUnavailable, "eaten into"));
  ledger.SetPressure("");
  const uint64_t generation = *ledger.Claim("a", 10);
  ledger.SetPressure("the node is eaten into");
  EXPECT_THAT(ledger.Retarget("a", generation, 11), HasStatus(absl::StatusCode::kUnavailable, "eaten into"));
  EXPECT_OK(ledger.Retarget("a", generation, 5));
  EXPECT_OK(ledger.Populate("a", 5));  // was promised
}

TEST(Ledger, RestoredEntriesMayOvercommitAndKeepGenerationsRising) {
  Ledger ledger(100);
  ledger.Restore({"old", 41, 150, 0, true});
  EXPECT_EQ(ledger.totals().available_bytes, 0u);
  EXPECT_FALSE(ledger.Claim("a", 1).ok());
  EXPECT_FALSE(ledger.Dead("old", 40).ok());
  EXPECT_OK(ledger.Dead("old", 41));
  EXPECT_EQ(*ledger.Claim("a", 1), 42u);
}

TEST(Ledger, ARangeGetsAsMuchAsFits) {
  Ledger ledger(100);
  EXPECT_EQ(ledger.ClaimRange("a", 10, 60)->bytes, 60u);
  EXPECT_EQ(ledger.ClaimRange("b", 10, 60)->bytes, 40u);
  EXPECT_THAT(ledger.ClaimRange("c", 1, 60), HasStatus(absl::StatusCode::kResourceExhausted, "0B are"));
  EXPECT_THAT(ledger.ClaimRange("c", 2, 1), HasStatus(absl::StatusCode::kInvalidArgument, "no range"));
  EXPECT_THAT(ledger.ClaimRange("c", 0, 1), HasStatus(absl::StatusCode::kInvalidArgument, "0 bytes"));
}

TEST(Ledger, PopulatingConvertsTheClaim) {
  Ledger ledger(100);
  ASSERT_OK(ledger.Claim("a", 60));
  ASSERT_OK(ledger.Claim("b", 30));
  EXPECT_OK(ledger.Populate("a", 60));
  EXPECT_EQ(ledger.totals().available_bytes, 10u);
  EXPECT_THAT(ledger.Populate("a", 11), HasStatus(absl::StatusCode::kResourceExhausted, "11B beyond"));
  EXPECT_EQ(ledger.totals().resident_bytes, 60u);
  EXPECT_OK(ledger.Populate("a", 10));
  EXPECT_OK(ledger.Populate("b", 30));  // promised, however full the node
  EXPECT_THAT(ledger.Populate("b", UINT64_MAX), HasStatus(absl::StatusCode::kResourceExhausted, "b"));
  EXPECT_THAT(ledger.Populate("x", 1), HasStatus(absl::StatusCode::kNotFound, "x"));
}

TEST(Ledger, ABuildsEndReleasesTheRest) {
  Ledger ledger(100);
  ASSERT_OK(ledger.Claim("a", 60));
  ASSERT_OK(ledger.Populate("a", 20));
  EXPECT_OK(ledger.Commit("a"));
  EXPECT_OK(ledger.Commit("a"));
  EXPECT_EQ(ledger.totals().available_bytes, 80u);
  EXPECT_OK(ledger.Populate("a", 80));  // beyond the claim, from what is available
  EXPECT_FALSE(ledger.Populate("a", 1).ok());
}

TEST(Ledger, TheDyingCountUntilTheyAreDead) {
  Ledger ledger(100);
  ASSERT_OK(ledger.Claim("a", 60));
  ASSERT_OK(ledger.Populate("a", 20));
  EXPECT_OK(ledger.Fail("a"));
  EXPECT_OK(ledger.Fail("a"));
  EXPECT_EQ(ledger.totals().available_bytes, 40u);
  EXPECT_THAT(ledger.Claim("a", 1), HasStatus(absl::StatusCode::kFailedPrecondition, "dying"));
  EXPECT_THAT(ledger.Populate("a", 1), HasStatus(absl::StatusCode::kFailedPrecondition, "dying"));
  EXPECT_THAT(ledger.Commit("a"), HasStatus(absl::StatusCode::kFailedPrecondition, "dying"));
  EXPECT_THAT(ledger.Retarget("a", 0, 1), HasStatus(absl::StatusCode::kFailedPrecondition, "dying"));
  EXPECT_THAT(ledger.Bind("a", 0), HasStatus(absl::StatusCode::kFailedPrecondition, "dying"));
  EXPECT_TRUE(ledger.Release("a"));  // what was never populated
  EXPECT_FALSE(ledger.Release("a"));
  EXPECT_EQ(ledger.totals().available_bytes, 80u);
  EXPECT_OK(ledger.Dead("a"));
  EXPECT_EQ(ledger.totals().available_bytes, 100u);
  EXPECT_THAT(ledger.Dead("a"), HasStatus(absl::StatusCode::kNotFound, "a"));
}

TEST(Ledger, AReleaseFreesWhatWasNeverPopulated) {
  Ledger ledger(100);
  ASSERT_OK(ledger.Claim("empty", 10));
  EXPECT_TRUE(ledger.Release("empty"));
  EXPECT_EQ(ledger.totals().entries, 0u);
  ASSERT_OK(ledger.Claim("bound", 10));
  ASSERT_OK(ledger.Bind("bound", 0));
  EXPECT_TRUE(ledger.Release("bound"));  // its process may be populating right now
  EXPECT_EQ(ledger.totals().entries, 1u);
  EXPECT_EQ(ledger.totals().available_bytes, 100u);
  EXPECT_FALSE(ledger.Claim("bound", 10).ok());
}

TEST(Ledger, AClientThatLogsInLosesWhatItHadNotUsed) {
  Ledger ledger(100);
  ASSERT_OK(ledger.Claim("reserved", 10, "one"));
  ASSERT_OK(ledger.Claim("bound", 10, "one"));
  ASSERT_OK(ledger.Bind("bound", 0));
  ASSERT_OK(ledger.Claim("populated", 10, "one"));
  ASSERT_OK(ledger.Populate("populated", 1));
  ASSERT_OK(ledger.Claim("failed", 10, "one"));
  ASSERT_OK(ledger.Fail("failed"));
  ASSERT_OK(ledger.Claim("another's", 10, "two"));
  EXPECT_THAT(ledger.Login("one"), ::testing::ElementsAre("reserved"));
  EXPECT_THAT(ledger.Login("one"), ::testing::IsEmpty());
  EXPECT_EQ(ledger.totals().claimed_bytes, 40u);
}

TEST(Ledger, ASetOfNodesIsGrantedWholeOrNotAtAll) {
  Ledger ledger(100, {{0, 60}, {1, 40}});
  EXPECT_OK(ledger.ClaimNodes("a", {{0, 50}, {1, 10}}));
  EXPECT_THAT(ledger.ClaimNodes("b", {{0, 10}, {1, 31}}),
              HasStatus(absl::StatusCode::kResourceExhausted, "NUMA node 1"));
  EXPECT_EQ(ledger.available_on(0), 10u);
  EXPECT_EQ(ledger.available_on(1), 30u);
  EXPECT_EQ(ledger.totals().available_bytes, 40u);
  EXPECT_THAT(ledger.ClaimNodes("b", {{2, 1}}), HasStatus(absl::StatusCode::kInvalidArgument, "node 2"));
  EXPECT_THAT(ledger.ClaimNodes("b", {{0, UINT64_MAX}, {1, UINT64_MAX}}),
              HasStatus(absl::StatusCode::kInvalidArgument, "too large"));
  // A new set replaces the old, and may use what the old one held.
  EXPECT_OK(ledger.ClaimNodes("a", {{0, 60}}));
  EXPECT_EQ(ledger.available_on(0), 0u);
  EXPECT_EQ(ledger.available_on(1), 40u);
  EXPECT_EQ(ledger.totals().available_bytes, 40u);
  // Claims from anywhere count in the whole.
  EXPECT_OK(ledger.Claim("c", 30));
  EXPECT_THAT(ledger.ClaimNodes("d", {{1, 11}}), HasStatus(absl::StatusCode::kResourceExhausted, "10B are"));
  EXPECT_THAT(ledger.Retarget("a", 0, 1), HasStatus(absl::StatusCode::kInvalidArgument, "new set"));
  EXPECT_OK(ledger.Dead("a"));
  EXPECT_EQ(ledger.available_on(0), 60u);
}

TEST(Ledger, RecoveryTakesTheLarger) {
  Ledger ledger(100);
  ledger.Restore({"a", 5, 40, 0, false});
  ledger.Restore({"a", 5, 30, 60, true});
  EXPECT_EQ(ledger.totals().claimed_bytes, 60u);
  const LedgerEntry entry = ledger.entries()[0];
  EXPECT_EQ(entry.target_bytes, 40u);
  EXPECT_TRUE(entry.bound);
}

TEST(Ledger, SumsBeyond64BitsDoNotWrap) {
  Ledger ledger(100);
  ledger.Restore({"a", 1, UINT64_MAX, 0, true});
  ledger.Restore({"b", 2, UINT64_MAX, UINT64_MAX, true});
  EXPECT_EQ(ledger.totals().claimed_bytes, UINT64_MAX);
  EXPECT_EQ(ledger.totals().available_bytes, 0u);
  EXPECT_FALSE(ledger.Claim("c", 1).ok());
  EXPECT_OK(ledger.Dead("a"));
  EXPECT_OK(ledger.Dead("b"));
  EXPECT_EQ(ledger.totals().claimed_bytes, 0u);
  EXPECT_OK(ledger.Claim("c", 100));
}

TEST(Ledger, ThreadsNeverOvercommitAndNothingIsLost) {
  Ledger ledger(1000);
  std::atomic<uint64_t> held{0}, most{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      for (int i = 0; i < 2000; ++i) {
        const std::string id = fmt::format("{}-{}", t, i);
        const uint64_t bytes = 1 + random() % 300;
        const auto generation = ledger.Claim(id, bytes);
        if (!generation.ok()) continue;
        const uint64_t now = held += bytes;
        for (uint64_t seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
        }
        held -= bytes;
        EXPECT_TRUE(ledger.Release(id, *generation));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_LE(most, 1000u);
  EXPECT_EQ(ledger.totals().claimed_bytes, 0u);
  EXPECT_EQ(ledger.totals().entries, 0u);
}

}  // namespace
}  // namespace lamina::sizing
