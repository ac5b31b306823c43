#include "sizing/ledger.h"

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

TEST(Ledger, ARepeatedClaimIsTheSameClaim) {
  Ledger ledger(100);
  const uint64_t generation = *ledger.Claim("a", 60);
  EXPECT_EQ(*ledger.Claim("a", 60), generation);
  EXPECT_EQ(ledger.totals().claimed_bytes, 60u);
  EXPECT_THAT(ledger.Claim("a", 61), HasStatus(absl::StatusCode::kAlreadyExists, "a"));
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
  EXPECT_OK(ledger.Claim("a", 1));
}

TEST(Ledger, RestoredEntriesMayOvercommitAndKeepGenerationsRising) {
  Ledger ledger(100);
  ledger.Restore({"old", 41, 150, 0, true});
  EXPECT_EQ(ledger.totals().available_bytes, 0u);
  EXPECT_FALSE(ledger.Claim("a", 1).ok());
  EXPECT_TRUE(ledger.Release("old", 41));
  EXPECT_EQ(*ledger.Claim("a", 1), 42u);
}

// A sequential model: a map, and a sum made anew each time.
TEST(Ledger, AgreesWithAModelOverRandomOperations) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    const uint64_t capacity = 1000;
    Ledger ledger(capacity);
    std::map<std::string, LedgerEntry> model;
    const auto sum = [&] {
      uint64_t total = 0;
      for (const auto& [id, entry] : model) total += entry.counted_bytes();
      return total;
    };
    const auto available = [&] { return sum() < capacity ? capacity - sum() : 0; };
    for (int step = 0; step < 200; ++step) {
      const std::string id = std::string(1, static_cast<char>('a' + random() % 8));
      const uint64_t bytes = 1 + random() % 400;
      const auto it = model.find(id);
      switch (random() % 5) {
        case 0: {
          const auto got = ledger.Claim(id, bytes);
          if (it != model.end()) {
            EXPECT_EQ(got.ok(), it->second.target_bytes == bytes);
          } else {
            ASSERT_EQ(got.ok(), bytes <= available()) << "seed " << seed << " step " << step;
            if (got.ok()) model[id] = {id, *got, bytes, 0, false};
          }
          break;
        }
        case 1:
          EXPECT_EQ(ledger.Release(id, it != model.end() && random() % 2 != 0 ? it->second.generation : 0),
                    it != model.end());
          if (it != model.end()) model.erase(it);
          break;
        case 2:
          EXPECT_FALSE(ledger.Release(id, 1'000'000));
          break;
        case 3:
          ledger.SetResident(id, bytes);
          if (it != model.end()) it->second.resident_bytes = bytes;
          break;
        default: {
          const auto status = ledger.Retarget(id, it != model.end() ? it->second.generation : 1, bytes);
          if (it == model.end()) {
            EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
            break;
          }
          LedgerEntry wanted = it->second;
          wanted.target_bytes = bytes;
          const uint64_t before = it->second.counted_bytes(), after = wanted.counted_bytes();
          const bool fits = after <= before || after - before <= available();
          ASSERT_EQ(status.ok(), fits) << "seed " << seed << " step " << step;
          if (fits) it->second = wanted;
        }
      }
      ASSERT_EQ(ledger.totals().claimed_bytes, sum()) << "seed " << seed << " step " << step;
      ASSERT_EQ(ledger.totals().entries, model.size());
    }
  }
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
