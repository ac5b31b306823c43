#include "guest/agent/files.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

TEST(Files, CountsAreWholeDecimalNumbersOrMax) {
  EXPECT_EQ(*ParseCount("0"), 0u);
  EXPECT_EQ(*ParseCount("18446744073709551615"), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(*ParseCount("max"), std::numeric_limits<uint64_t>::max());
  for (const char* bad : {"", "-1", "1 ", " 1", "0x10", "18446744073709551616", "maximum"}) {
    EXPECT_NOT_OK(ParseCount(bad)) << bad;
  }
}

TEST(Files, FlatKeyedFilesGiveTheirNumbersAndSkipOtherLines) {
  const auto values = ParseFlatKeyed("low 0\noom 3\noom_kill 2\nnonsense\n bad 1\nanon x\n");
  EXPECT_EQ(values.at("oom"), 3u);
  EXPECT_EQ(values.at("oom_kill"), 2u);
  EXPECT_EQ(values.count("anon"), 0u);
  EXPECT_EQ(values.count("nonsense"), 0u);
  EXPECT_EQ(values.size(), 3u);
}

TEST(Files, LayerIdsAre64LowerCaseHexDigits) {
  EXPECT_OK(CheckLayerId(std::string(64, 'a')));
  EXPECT_NOT_OK(CheckLayerId(std::string(63, 'a')));
  EXPECT_NOT_OK(CheckLayerId(std::string(64, 'A')));
  EXPECT_NOT_OK(CheckLayerId("../" + std::string(61, 'a')));
}

TEST(Files, CpuListsExpand) {
  EXPECT_EQ(*ParseCpuList("0"), (std::vector<uint32_t>{0}));
  EXPECT_EQ(*ParseCpuList("0-2,5"), (std::vector<uint32_t>{0, 1, 2, 5}));
  EXPECT_TRUE(ParseCpuList("")->empty());
  for (const char* bad : {"a", "3-1", "0-", "0-999999999"}) EXPECT_NOT_OK(ParseCpuList(bad)) << bad;
}

}  // namespace
}  // namespace lamina::guest
