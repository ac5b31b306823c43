#include "sizing/claims_replay.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "base/units.h"

namespace lamina::sizing {
namespace {

using nlohmann::json;

struct Replayed {
  std::vector<json> lines;
  json summary;
};

Replayed Replay(const std::string& trace, uint64_t capacity = 64 * kGiB) {
  Replayed out;
  ReplayClaims(trace, capacity, [&](const std::string& text) {
    const json line = json::parse(text);
    if (line.contains("summary")) {
      out.summary = line["summary"];
    } else {
      out.lines.push_back(line);
    }
  });
  return out;
}

std::string Results(const Replayed& replayed) {
  std::string text;
  for (const json& line : replayed.lines) {
    text += line["result"].get<std::string>() + " " +
            std::to_string(line["available"].get<uint64_t>() / kGiB) + "\n";
  }
  return text;
}

TEST(ClaimsReplay, EveryLineForm) {
  const Replayed replayed = Replay(
      "# a pod's life\n"
      "claim a 16GiB\n"
      "claim a 16GiB\n"
      "populate a 10GiB\n"
      "commit a\n"
      "\n"
      "range b 4GiB 60GiB\n"
      "claim c 1\n"
      "retarget b 20GiB\n"
      "fail b\n"
      "claim b 1GiB\n"
      "populate b 1GiB\n"
      "release b\n"
      "release b\n"
      "dead b\n"
      "dead b\n"
      "release a\n"
      "dead a\n"
      "release a\n");
  EXPECT_EQ(Results(replayed),
            "ok 48\n"
            "exists 48\n"
            "ok 48\n"
            "ok 54\n"
            "ok 0\n"
            "no-memory 0\n"
            "ok 34\n"
            "ok 34\n"
            "dying 34\n"
            "dying 34\n"
            "ok 54\n"
            "ok 54\n"
            "ok 54\n"
            "not-found 54\n"
            "ok 54\n"
            "ok 64\n"
            "ok 64\n");
  EXPECT_EQ(replayed.lines[4]["granted"], 54 * kGiB);
  EXPECT_FALSE(replayed.lines[0].contains("granted"));
  EXPECT_EQ(replayed.lines[4]["line"], 7);
  EXPECT_EQ(replayed.summary["lines"], 17);
  EXPECT_EQ(replayed.summary["results"]["ok"], 12);
  EXPECT_EQ(replayed.summary["results"]["no-memory"], 1);
  EXPECT_EQ(replayed.summary["capacity"], 64 * kGiB);
  EXPECT_EQ(replayed.summary["available"], 64 * kGiB);
  EXPECT_EQ(replayed.summary["least_available"], 0);
  EXPECT_EQ(replayed.summary["entries"], 0);
}

TEST(ClaimsReplay, PopulatingIsWithinTheClaimOrFromWhatIsAvailable) {
  const Replayed replayed = Replay(
      "claim a 40GiB\nclaim b 20GiB\npopulate a 44GiB\npopulate a 1GiB\npopulate b 20GiB\npopulate b 1\n");
  EXPECT_EQ(Results(replayed), "ok 24\nok 4\nok 0\nno-memory 0\nok 0\nno-memory 0\n");
}

TEST(ClaimsReplay, BadLinesAreInvalidAndNamed) {
  const char* const kBad[] = {"claim a",       "claim a 1GB2", "claim a -1",          "claim a 0",
                              "claim",         "grow a 1GiB",  "range a 2GiB 1GiB",   "claim a 1GiB 2GiB",
                              "commit a 1GiB", "retarget a",   "claim a 99999999TiB", "\xff\xfe"};
  for (const char* bad : kBad) {
    const Replayed replayed = Replay(std::string(bad) + "\nclaim z 1GiB\n");
    ASSERT_EQ(replayed.lines.size(), 2u) << bad;
    EXPECT_EQ(replayed.lines[0]["result"], "invalid") << bad;
    EXPECT_EQ(replayed.lines[0]["available"], 64 * kGiB) << bad;
    EXPECT_NE(replayed.lines[0]["error"], "") << bad;
    EXPECT_EQ(replayed.lines[1]["result"], "ok") << bad;
    EXPECT_EQ(replayed.summary["results"]["invalid"], 1) << bad;
  }
  EXPECT_NE(Replay("claim a 1GB2").lines[0]["error"].get<std::string>().find("1GB2"), std::string::npos);
  EXPECT_NE(Replay("grow a 1GiB").lines[0]["error"].get<std::string>().find("grow"), std::string::npos);
}

TEST(ClaimsReplay, AnEmptyTraceHasASummary) {
  const Replayed replayed = Replay("");
  EXPECT_TRUE(replayed.lines.empty());
  EXPECT_EQ(replayed.summary["available"], 64 * kGiB);
}

}  // namespace
}  // namespace lamina::sizing
