#include "base/units.h"

#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace lamina {
namespace {

using testing::HasStatus;

TEST(ParseBytes, ReadsEveryUnit) {
  for (const auto& [text, bytes] :
       std::vector<std::pair<std::string, uint64_t>>{{"0", 0},
                                                     {"4096", 4096},
                                                     {"4096B", 4096},
                                                     {"64MiB", 64 * kMiB},
                                                     {"64Mi", 64 * kMiB},
                                                     {"1.5GiB", kGiB + kGiB / 2},
                                                     {"0.5KiB", 512},
                                                     {"2TiB", 2 * kTiB},
                                                     {"64M", 64'000'000},
                                                     {"1e3", 1000},
                                                     {"9223372036854775807", INT64_MAX}}) {
    const auto parsed = ParseBytes(text, "x");
    ASSERT_OK(parsed) << text;
    EXPECT_EQ(*parsed, bytes) << text;
  }
}

TEST(ParseBytes, NamesWhatIsWrong) {
  for (const char* text : {"", "-1", "+1", "MiB", "1.MiB", "1..5GiB", "1XB", "0.3B", "9223372036854775808",
                           "99999999999999999999999", "1 MiB", "0x10"}) {
    EXPECT_THAT(ParseBytes(text, "memory.reserve"),
                HasStatus(absl::StatusCode::kInvalidArgument, "memory.reserve"))
        << text;
  }
}

TEST(ParseCpus, IsExact) {
  EXPECT_EQ(*ParseCpus("0.1", "x"), 100'000'000);
  EXPECT_EQ(*ParseCpus("250m", "x"), 250'000'000);
  EXPECT_EQ(*ParseCpus("0.000000001", "x"), 1);
  EXPECT_EQ(*ParseCpus("2", "x"), 2'000'000'000);
  for (const char* text : {"0.0000000001", "-0.5", "1.5.0", "m", "", "1e9", "1000001", "0.5 "}) {
    EXPECT_THAT(ParseCpus(text, "cpu"), HasStatus(absl::StatusCode::kInvalidArgument, "cpu")) << text;
  }
}

TEST(Format, IsShortestExact) {
  EXPECT_EQ(FormatBytes(0), "0B");
  EXPECT_EQ(FormatBytes(64 * kMiB), "64MiB");
  EXPECT_EQ(FormatBytes(1536 * kKiB), "1536KiB");
  EXPECT_EQ(FormatBytes(1000), "1000B");
  EXPECT_EQ(FormatCpus(750'000'000), "0.75");
  EXPECT_EQ(FormatCpus(2'000'000'000), "2");
  EXPECT_EQ(FormatCpus(1), "0.000000001");
}

TEST(Format, IsReadBack) {
  for (uint64_t bytes : {uint64_t{1}, 4096 * kKiB, 3 * kGiB, 5 * kTiB + 1})
    EXPECT_EQ(*ParseBytes(FormatBytes(bytes), "x"), bytes);
}

}  // namespace
}  // namespace lamina
