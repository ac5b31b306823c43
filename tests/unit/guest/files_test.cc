#include "guest/agent/files.h"

#include <gtest/gtest.h>

#include <limits>

namespace lamina::guest {
namespace {

TEST(Files, CountsAreWholeDecimalNumbersOrMax) {
  EXPECT_EQ(*ParseCount("0"), 0u);
  EXPECT_EQ(*ParseCount("18446744073709551615"), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(*ParseCount("max"), std::numeric_limits<uint64_t>::max());
  for (const char* bad : {"", "-1", "1 ", " 1", "0x10", "18446744073709551616", "maximum"}) {
    EXPECT_FALSE(ParseCount(bad).ok()) << bad;
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

TEST(Files, IdsThatCouldLeaveTheirDirectoryAreRefused) {
  EXPECT_TRUE(CheckId("web-1.a_b", "id").ok());
  EXPECT_TRUE(CheckId(std::string(128, 'a'), "id").ok());
  for (const std::string& bad :
       {std::string(), std::string("."), std::string(".."), std::string("a/b"), std::string("-x"),
        std::string("a b"), std::string("a\0b", 3), std::string(129, 'a')}) {
    EXPECT_EQ(CheckId(bad, "id").code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(Files, LayerIdsAre64LowerCaseHexDigits) {
  EXPECT_TRUE(CheckLayerId(std::string(64, 'a')).ok());
  EXPECT_FALSE(CheckLayerId(std::string(63, 'a')).ok());
  EXPECT_FALSE(CheckLayerId(std::string(64, 'A')).ok());
  EXPECT_FALSE(CheckLayerId("../" + std::string(61, 'a')).ok());
}

TEST(Files, CpuListsExpand) {
  EXPECT_EQ(*ParseCpuList("0"), (std::vector<uint32_t>{0}));
  EXPECT_EQ(*ParseCpuList("0-2,5"), (std::vector<uint32_t>{0, 1, 2, 5}));
  EXPECT_TRUE(ParseCpuList("")->empty());
  for (const char* bad : {"a", "3-1", "0-", "0-999999999"}) EXPECT_FALSE(ParseCpuList(bad).ok()) << bad;
}

}  // namespace
}  // namespace lamina::guest
