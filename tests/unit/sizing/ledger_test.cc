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
  EXPECT_NOT_OK(ledger.Dead("a", first));
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
  ledger.Watch("the node is eaten into");
  EXPECT_THAT(ledger.Claim("a", 1), HasStatus(absl::StatusCode::kUnavailable, "eaten into"));
  ledger.Watch("");
  const uint64_t generation = *ledger.Claim("a", 10);
  ledger.Watch("the node is eaten into");
  EXPECT_THAT(ledger.Retarget("a", generation, 11), HasStatus(absl::StatusCode::kUnavailable, "eaten into"));
  EXPECT_OK(ledger.Retarget("a", generation, 5));
  EXPECT_OK(ledger.Populate("a", 5));  // was promised
}

TEST(Ledger, RestoredEntriesMayOvercommitAndKeepGenerationsRising) {
  Ledger ledger(100);
  ledger.Restore({"old", 41, 150, 0, true});
  EXPECT_EQ(ledger.totals().available_bytes, 0u);
  EXPECT_NOT_OK(ledger.Claim("a", 1));
  EXPECT_NOT_OK(ledger.Dead("old", 40));
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
  EXPECT_THAT(ledger.Populate("a", 11),
              HasStatus(absl::StatusCode::kResourceExhausted, "11B more are needed"));
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
  EXPECT_OK(ledger.EndBuild("a", BuildEnd::kWell));
  EXPECT_OK(ledger.EndBuild("a", BuildEnd::kWell));
  EXPECT_EQ(ledger.totals().available_bytes, 80u);
  EXPECT_OK(ledger.Populate("a", 80));  // beyond the claim, from what is available
  EXPECT_NOT_OK(ledger.Populate("a", 1));
}

TEST(Ledger, TheDyingCountUntilTheyAreDead) {
  Ledger ledger(100);
  ASSERT_OK(ledger.Claim("a", 60));
  ASSERT_OK(ledger.Populate("a", 20));
  EXPECT_OK(ledger.EndBuild("a", BuildEnd::kFailed));
  EXPECT_OK(ledger.EndBuild("a", BuildEnd::kFailed));
  EXPECT_EQ(ledger.totals().available_bytes, 40u);
  EXPECT_THAT(ledger.Claim("a", 1), HasStatus(absl::StatusCode::kFailedPrecondition, "dying"));
  EXPECT_THAT(ledger.Populate("a", 1), HasStatus(absl::StatusCode::kFailedPrecondition, "dying"));
  EXPECT_THAT(ledger.EndBuild("a", BuildEnd::kWell),
              HasStatus(absl::StatusCode::kFailedPrecondition, "dying"));
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
  EXPECT_NOT_OK(ledger.Claim("bound", 10));
}

TEST(Ledger, AClientThatLogsInLosesWhatItHadNotUsed) {
  Ledger ledger(100);
  ASSERT_OK(ledger.Claim("reserved", 10, "one"));
  ASSERT_OK(ledger.Claim("bound", 10, "one"));
  ASSERT_OK(ledger.Bind("bound", 0));
  ASSERT_OK(ledger.Claim("populated", 10, "one"));
  ASSERT_OK(ledger.Populate("populated", 1));
  ASSERT_OK(ledger.Claim("failed", 10, "one"));
  ASSERT_OK(ledger.EndBuild("failed", BuildEnd::kFailed));
  ASSERT_OK(ledger.Claim("another's", 10, "two"));
  EXPECT_THAT(ledger.Login("one"), ::testing::ElementsAre("reserved"));
  EXPECT_THAT(ledger.Login("one"), ::testing::IsEmpty());
  EXPECT_EQ(ledger.totals().claimed_bytes, 40u);
}

uint64_t AvailableOn(const Ledger& ledger, uint32_t node) {
  return ledger.totals().nodes.at(node).available_bytes;
}

TEST(Ledger, ASetOfNodesIsGrantedWholeOrNotAtAll) {
  Ledger ledger(100, {{0, 60}, {1, 40}});
  EXPECT_OK(ledger.ClaimNodes("a", 21, {0, 1}));
  EXPECT_EQ(ledger.totals().nodes.at(0).claimed_bytes, 11u);
  EXPECT_EQ(ledger.totals().nodes.at(1).claimed_bytes, 10u);
  EXPECT_THAT(ledger.ClaimNodes("b", 62, {0, 1}),
              HasStatus(absl::StatusCode::kResourceExhausted,
                        "62B from NUMA nodes 0-1: node 1 has 30B of 40B available, 31B are wanted there"));
  EXPECT_EQ(AvailableOn(ledger, 0), 49u);
  EXPECT_EQ(AvailableOn(ledger, 1), 30u);
  EXPECT_EQ(ledger.totals().available_bytes, 79u);
  EXPECT_THAT(ledger.ClaimNodes("b", 1, {0, 2}),
              HasStatus(absl::StatusCode::kInvalidArgument, "no NUMA node 2 with memory here, but 0-1"));
  EXPECT_THAT(ledger.ClaimNodes("b", 1, {}), HasStatus(absl::StatusCode::kInvalidArgument, "empty set"));
  EXPECT_THAT(ledger.ClaimNodes("b", 0, {0}), HasStatus(absl::StatusCode::kInvalidArgument, "0 bytes"));
  EXPECT_THAT(
      Ledger(100).ClaimNodes("b", 1, {0}),
      HasStatus(absl::StatusCode::kInvalidArgument, "no NUMA node 0 with memory here, nor any other"));
  EXPECT_THAT(ledger.ClaimNodes("b", UINT64_MAX, {0, 1}),
              HasStatus(absl::StatusCode::kResourceExhausted, "node 0"));
}

TEST(Ledger, ANewSetReplacesTheOldUntilItsVmRuns) {
  Ledger ledger(100, {{0, 60}, {1, 40}});
  const uint64_t first = *ledger.ClaimNodes("a", 80, {0, 1});
  const auto second = ledger.ClaimNodes("a", 60, {0});  // may use what the old one held
  ASSERT_OK(second);
  EXPECT_GT(*second, first);
  EXPECT_EQ(AvailableOn(ledger, 0), 0u);
  EXPECT_EQ(AvailableOn(ledger, 1), 40u);
  EXPECT_THAT(ledger.ClaimNodes("a", 41, {1}), HasStatus(absl::StatusCode::kResourceExhausted, "node 1"));
  EXPECT_EQ(AvailableOn(ledger, 0), 0u);
  ASSERT_OK(ledger.Bind("a", *second));
  EXPECT_THAT(ledger.ClaimNodes("a", 10, {1}), HasStatus(absl::StatusCode::kAlreadyExists, "its VM runs"));
  EXPECT_OK(ledger.Dead("a"));
  EXPECT_EQ(AvailableOn(ledger, 0), 60u);
}

// A claim without a set may lie on any node: no node has more than the whole has.
TEST(Ledger, ClaimsFromAnywhereCountInTheWhole) {
  Ledger ledger(100, {{0, 60}, {1, 40}});
  ASSERT_OK(ledger.Claim("anywhere", 90));
  EXPECT_EQ(AvailableOn(ledger, 0), 10u);
  EXPECT_EQ(AvailableOn(ledger, 1), 10u);
  EXPECT_THAT(ledger.ClaimNodes("a", 11, {1}),
              HasStatus(absl::StatusCode::kResourceExhausted, "11B more are needed, 10B are available"));
  EXPECT_OK(ledger.ClaimNodes("a", 10, {1}));
}

TEST(Ledger, ASetMovesWithItsEntry) {
  Ledger ledger(100, {{0, 60}, {1, 40}});
  ASSERT_OK(ledger.ClaimNodes("a", 40, {0, 1}));
  EXPECT_OK(ledger.Retarget("a", 0, 60));
  EXPECT_EQ(AvailableOn(ledger, 0), 30u);
  EXPECT_EQ(AvailableOn(ledger, 1), 10u);
  EXPECT_THAT(ledger.Retarget("a", 0, 82),
              HasStatus(absl::StatusCode::kResourceExhausted,
                        "growing to 82B: node 1 has 10B of 40B available, 11B are wanted there"));
  EXPECT_EQ(AvailableOn(ledger, 0), 30u);
  ASSERT_OK(ledger.Populate("a", 50));
  EXPECT_THAT(ledger.Populate("a", 32), HasStatus(absl::StatusCode::kResourceExhausted, "node 1"));
  ASSERT_OK(ledger.Retarget("a", 0, 2));  // what it holds counts, on its nodes too
  EXPECT_EQ(AvailableOn(ledger, 1), 15u);
  ledger.SetResident("a", 0);
  EXPECT_EQ(AvailableOn(ledger, 1), 39u);
  EXPECT_TRUE(ledger.Release("a"));
  EXPECT_EQ(AvailableOn(ledger, 1), 40u);
}

// VMs without a set, and others, may have eaten into a node: what is seen there is a veto for sets alone.
TEST(Ledger, ANodeThatOthersHaveEatenIntoIsPromisedToNoSet) {
  Ledger ledger(100, {{0, 60}, {1, 40}});
  ASSERT_OK(ledger.ClaimNodes("a", 20, {0}));
  ledger.SetResident("a", 5);
  ledger.Watch("", {{0, 25}, {7, 1}});
  EXPECT_THAT(
      ledger.ClaimNodes("b", 11, {0}),
      HasStatus(absl::StatusCode::kUnavailable,
                "node 0 has 25B of memory left, less than the 11B that are wanted there and the 15B"));
  EXPECT_THAT(ledger.Retarget("a", 0, 31), HasStatus(absl::StatusCode::kUnavailable, "node 0"));
  EXPECT_OK(ledger.Claim("anywhere", 30));
  EXPECT_OK(ledger.ClaimNodes("c", 20, {1}));
  EXPECT_OK(ledger.ClaimNodes("b", 10, {0}));
  EXPECT_THAT(ledger.ClaimNodes("d", 1, {0}), HasStatus(absl::StatusCode::kUnavailable, "node 0"));
  ledger.Watch("", {{0, UINT64_MAX}});
  EXPECT_OK(ledger.ClaimNodes("d", 1, {0}));
}

TEST(Ledger, ASetComesBackAfterARestart) {
  Ledger ledger(100, {{0, 60}, {1, 40}});
  ledger.Restore({"a", 5, 30, 0, false, false, "", {0}});
  ledger.Restore({"a", 5, 10, 50, true});
  EXPECT_EQ(AvailableOn(ledger, 0), 10u);
  EXPECT_EQ(ledger.entries()[0].nodes, NumaNodes{0});
  // Of a node that the machine has no more: the whole alone counts.
  ledger.Restore({"b", 6, 10, 0, true, false, "", {5}});
  EXPECT_EQ(ledger.totals().nodes.size(), 2u);
  EXPECT_EQ(ledger.totals().claimed_bytes, 60u);
  EXPECT_OK(ledger.Retarget("b", 6, 20));
  EXPECT_OK(ledger.Dead("b"));
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
  EXPECT_NOT_OK(ledger.Claim("c", 1));
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
