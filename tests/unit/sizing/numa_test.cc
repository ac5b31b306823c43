#include "sizing/numa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "base/units.h"
#include "tests/testing/status_matchers.h"

namespace lamina::sizing {
namespace {

using ::testing::ElementsAre;
using testing::HasStatus;
using ::testing::IsEmpty;
using ::testing::Pair;

TEST(NumaNodes, AreReadAsTheKernelWritesThem) {
  EXPECT_THAT(ParseNumaNodes("0", "x").value(), ElementsAre(0));
  EXPECT_THAT(ParseNumaNodes("0,2", "x").value(), ElementsAre(0, 2));
  EXPECT_THAT(ParseNumaNodes("7,0-2,127", "x").value(), ElementsAre(0, 1, 2, 7, 127));
  EXPECT_THAT(ParseNumaNodes("3-3", "x").value(), ElementsAre(3));
}

TEST(NumaNodes, WhatIsNoListIsNamedWithItsReason) {
  for (const auto& [text, why] : std::map<std::string, std::string>{{"", "empty"},
                                                                    {",", "number is missing"},
                                                                    {"0,", "number is missing"},
                                                                    {"0-", "number is missing"},
                                                                    {"-1", "number is missing"},
                                                                    {"+1", "number is missing"},
                                                                    {"all", "number is missing"},
                                                                    {"0 ", "' ' stands in it"},
                                                                    {"0;1", "';' stands in it"},
                                                                    {"0-3:2", "':' stands in it"},
                                                                    {"1-0", "upside down"},
                                                                    {"0,0", "node 0 is named twice"},
                                                                    {"0-2,1", "node 1 is named twice"},
                                                                    {"128", "node 128 is above 127"},
                                                                    {"0-4294967295", "above 127"},
                                                                    {"99999999999999999999", "above 127"}}) {
    EXPECT_THAT(ParseNumaNodes(text, "annotation x"), HasStatus(absl::StatusCode::kInvalidArgument, why));
    EXPECT_THAT(ParseNumaNodes(text, "annotation x"),
                HasStatus(absl::StatusCode::kInvalidArgument, "annotation x: \"" + text + "\""));
  }
}

TEST(NumaNodes, AreWrittenAsTheyAreRead) {
  EXPECT_EQ(FormatNumaNodes({}), "");
  EXPECT_EQ(FormatNumaNodes({0, 1, 2, 4, 6, 7}), "0-2,4,6-7");
  std::mt19937_64 random(1);
  for (int i = 0; i < 1000; ++i) {
    NumaNodes nodes{static_cast<uint32_t>(random() % (kMaxNumaNode + 1))};
    for (uint64_t more = random() % 20; more > 0; --more)
      nodes.insert(static_cast<uint32_t>(random() % (kMaxNumaNode + 1)));
    EXPECT_EQ(ParseNumaNodes(FormatNumaNodes(nodes), "x").value(), nodes);
  }
}

TEST(NumaNodes, AnEvenDivisionIsExact) {
  EXPECT_THAT(DivideEvenly(11, {0, 2, 5}), ElementsAre(Pair(0, 4), Pair(2, 4), Pair(5, 3)));
  EXPECT_THAT(DivideEvenly(UINT64_MAX, {3}), ElementsAre(Pair(3, UINT64_MAX)));
  EXPECT_THAT(DivideEvenly(1, {0, 1}), ElementsAre(Pair(0, 1), Pair(1, 0)));
  EXPECT_THAT(DivideEvenly(5, {}), IsEmpty());
}

TEST(NumaNodes, ADivisionInProportionIsExact) {
  EXPECT_THAT(DivideInProportion(100, {{0, 3}, {1, 1}}), ElementsAre(Pair(0, 75), Pair(1, 25)));
  EXPECT_THAT(DivideInProportion(100, {{0, 1}, {1, 0}, {2, 2}}), ElementsAre(Pair(0, 33), Pair(2, 67)));
  EXPECT_THAT(DivideInProportion(100, {{0, 0}}), IsEmpty());
  EXPECT_THAT(DivideInProportion(100, {}), IsEmpty());
  std::mt19937_64 random(2);
  for (int i = 0; i < 1000; ++i) {
    NodeBytes sizes;
    for (uint32_t node = 0; node < 1 + random() % 8; ++node) sizes[node] = 1 + random() % (64 * kTiB);
    const uint64_t bytes = random() >> random() % 64;
    uint64_t sum = 0;
    long double whole = 0;
    for (const auto& [node, size] : sizes) whole += static_cast<long double>(size);
    for (const auto& [node, part] : DivideInProportion(bytes, sizes)) {
      sum += part;
      const long double wanted =
          static_cast<long double>(bytes) * static_cast<long double>(sizes[node]) / whole;
      EXPECT_NEAR(static_cast<double>(part - wanted), 0, 8 + static_cast<double>(wanted) * 1e-15);
    }
    EXPECT_EQ(sum, bytes);
  }
}

}  // namespace
}  // namespace lamina::sizing
