#include "sizing/rational.h"

#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace lamina::sizing {
namespace {

TEST(Rational, AddsExactly) {
  Rational sum;
  for (int i = 0; i < 10; ++i) sum = *sum.Plus(Rational(1, 10));
  EXPECT_EQ(sum.ToString(), "1");
  EXPECT_EQ(*sum.Ceil(), 1u);
  EXPECT_EQ(Rational(1, 3).Plus(Rational(1, 3))->Plus(Rational(1, 3))->ToString(), "1");
}

TEST(Rational, WritesDecimalsAndFractions) {
  EXPECT_EQ(Rational(3, 4).ToString(), "0.75");
  EXPECT_EQ(Rational(1, 3).ToString(), "1/3");
  EXPECT_EQ(Rational(0, 5).ToString(), "0");
  EXPECT_EQ(Rational(250'000'000, 1'000'000'000).ToString(), "0.25");
  EXPECT_EQ(Rational(1, 1 << 18).ToString(), "0.000003814697265625");
  EXPECT_EQ(Rational(7, 3).ToNano(), 2'333'333'333);
}

TEST(Rational, CeilsOnlyFractions) {
  EXPECT_EQ(*Rational(4, 2).Ceil(), 2u);
  EXPECT_EQ(*Rational(5, 2).Ceil(), 3u);
  EXPECT_EQ(*Rational(1, 1'000'000'000).Ceil(), 1u);
}

TEST(Rational, OverflowIsAnError) {
  Rational sum(1, 1);
  absl::Status status;
  for (const uint64_t prime :
       {999'983ULL, 999'979ULL, 999'961ULL, 999'959ULL, 999'953ULL, 999'931ULL, 999'917ULL, 999'907ULL}) {
    const auto next = sum.Plus(Rational(1, prime));
    status = next.status();
    if (!next.ok()) break;
    sum = *next;
  }
  EXPECT_THAT(status, testing::HasStatus(absl::StatusCode::kOutOfRange, "periods"));
}

}  // namespace
}  // namespace lamina::sizing
