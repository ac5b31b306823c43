#include "layers/fair_turns.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

namespace lamina::layers {
namespace {

std::optional<size_t> Next(const std::vector<DomainCounts>& waiting,
                           const std::vector<DomainCounts>& under_way, const TurnLimits& limits) {
  std::vector<const DomainCounts*> w, u;
  for (const DomainCounts& one : waiting) w.push_back(&one);
  for (const DomainCounts& one : under_way) u.push_back(&one);
  return NextTurn(w, u, limits);
}

const DomainCounts kA{{"a", 1}}, kB{{"b", 1}}, kC{{"c", 2}}, kBoth{{"a", 1}, {"b", 1}};

TEST(FairTurns, OneDomainUsesAllTurnsAndNoMore) {
  EXPECT_EQ(Next({kA, kA, kA}, {}, {2, 8}), 0u);
  EXPECT_EQ(Next({kA, kA}, {kA}, {2, 8}), 0u);
  EXPECT_EQ(Next({kA}, {kA, kA}, {2, 8}), std::nullopt);
  EXPECT_EQ(Next({}, {}, {2, 8}), std::nullopt);
}

TEST(FairTurns, WhoHasNoneNeverWaits) {
  EXPECT_EQ(Next({kA, kA, kB}, {kA}, {2, 8}), 2u) << "before an earlier second";
  EXPECT_EQ(Next({kA, kB}, {kA, kA}, {2, 8}), 1u) << "in an extra turn";
  EXPECT_EQ(Next({kA, kB}, {kA, kA, kB}, {2, 8}), std::nullopt) << "one extra turn for each";
  EXPECT_EQ(Next({kC}, {kA, kA, kB}, {2, 1}), std::nullopt) << "and not without end";
  EXPECT_EQ(Next({kB, kC}, {kA}, {2, 8}), 0u) << "in the order of arrival";
}

TEST(FairTurns, AnImageIsUnderWayForAllWhoWaitForIt) {
  EXPECT_EQ(Next({kB}, {kA, kBoth}, {2, 8}), std::nullopt);
  EXPECT_EQ(Next({kA, kBoth}, {kA, kA}, {2, 8}), 1u) << "the second one is b's first";
  EXPECT_EQ(Next({{}}, {kA, kA}, {2, 8}), std::nullopt) << "nobody is in a hurry";
  EXPECT_EQ(Next({{}}, {}, {2, 8}), 0u);
}

TEST(FairTurns, ThenComesTheDomainWithTheFewest) {
  EXPECT_EQ(Next({kA, kB}, {kA, kA, kB}, {4, 8}), 1u);
  EXPECT_EQ(Next({kA, kB}, {kA, kB}, {4, 8}), 0u);
}

class FairTurnsProperty : public ::testing::TestWithParam<unsigned> {};

// Images come and end in any order. Whenever one begins, and once none can begin any more:
TEST_P(FairTurnsProperty, NoFirstWaitsBehindASecond) {
  std::mt19937 random(GetParam());
  const auto below = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
  const TurnLimits limits{1 + below(4), below(6)};
  std::vector<DomainCounts> waiting, under_way;
  const auto has_none = [&](const DomainCounts& image) {
    return std::any_of(image.begin(), image.end(), [&](const auto& domain) {
      return std::none_of(under_way.begin(), under_way.end(),
                          [&](const DomainCounts& other) { return other.count(domain.first) != 0; });
    });
  };
  size_t came = 0, ended = 0;
  constexpr size_t kImages = 300;
  while (ended < kImages) {
    if (came < kImages && (under_way.empty() || below(2) == 0)) {
      DomainCounts image;
      const size_t domains = 1 + below(2);
      for (size_t i = 0; i < domains; ++i) image[std::string(1, static_cast<char>('a' + below(8)))] = 1;
      waiting.push_back(std::move(image));
      ++came;
    } else {
      ASSERT_FALSE(under_way.empty()) << "all wait, and nothing is under way";
      under_way.erase(under_way.begin() + static_cast<ptrdiff_t>(below(under_way.size())));
      ++ended;
    }
    while (const std::optional<size_t> next = Next(waiting, under_way, limits)) {
      const DomainCounts image = waiting.at(*next);
      if (!has_none(image)) {
        EXPECT_TRUE(std::none_of(waiting.begin(), waiting.end(), has_none)) << "a first waits";
        EXPECT_LT(under_way.size(), limits.most);
      }
      waiting.erase(waiting.begin() + static_cast<ptrdiff_t>(*next));
      under_way.push_back(image);
    }
    EXPECT_LE(under_way.size(), limits.most + limits.extra);
    if (!waiting.empty()) {
      EXPECT_GE(under_way.size(), limits.most) << "turns are left, and images wait";
    }
    if (std::any_of(waiting.begin(), waiting.end(), has_none)) {
      EXPECT_EQ(under_way.size(), limits.most + limits.extra);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, FairTurnsProperty, ::testing::Range(1u, 41u));

}  // namespace
}  // namespace lamina::layers
