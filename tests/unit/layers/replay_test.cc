#include "layers/replay.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "base/units.h"
#include "tests/testing/status_matchers.h"

namespace lamina::layers {
namespace {

using nlohmann::json;

constexpr uint64_t kMi = 1 << 20;

struct Played {
  absl::StatusOr<ReplaySummary> summary = absl::InternalError("not run");
  std::vector<json> lines;
};

Played Play(const std::string& trace, ReplayOptions options) {
  Played run;
  run.summary =
      Replay(trace, options, [&](const std::string& line) { run.lines.push_back(json::parse(line)); });
  return run;
}

ReplayOptions Classic(size_t devices = 1) { return {Policy::kClassic, 4ULL << 30, devices}; }

TEST(Replay, ClassicLineByLine) {
  const Played run = Play(
      "# layers\n"
      "alloc a 1MiB\n"
      "alloc b 1048577\n"
      "\n"
      "alloc zero 0\n"
      "alloc huge 4294967297\r\n"
      "free a\n"
      "free a\n"
      "free nobody\n"
      "  alloc  c  1024KiB  \n"
      "free a\n"
      "alloc whole 4GiB\n"
      "free b\n"
      "free c\n"
      "alloc whole 4GiB",
      Classic());
  ASSERT_OK(run.summary);
  const std::vector<std::string> expected = {"ok",
                                             "ok",
                                             "invalid-size",
                                             "invalid-size",
                                             "ok",
                                             "not-allocated",
                                             "not-allocated",
                                             "ok",
                                             "not-allocated",
                                             "not-enough-space",
                                             "ok",
                                             "ok",
                                             "ok"};
  ASSERT_EQ(run.lines.size(), expected.size() + 1);
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(run.lines[i]["result"], expected[i]) << run.lines[i];
  EXPECT_EQ(run.lines[0],
            json::parse(
                R"({"line":2,"op":"alloc","name":"a","result":"ok","device":0,"offset":0,"held":1048576})"));
  EXPECT_EQ(run.lines[1]["offset"], 4 * kMi);
  EXPECT_EQ(run.lines[1]["held"], 4 * kMi);
  EXPECT_EQ(run.lines[7]["offset"], 0) << "a's place, whose old handle then frees nothing";
  EXPECT_FALSE(run.lines[5].contains("offset"));
  const json summary = run.lines.back()["summary"];
  EXPECT_EQ(summary["payload"], 4ULL << 30);
  EXPECT_EQ(summary["held"], 4ULL << 30);
  EXPECT_EQ(summary["live"], 1);
  EXPECT_EQ(summary["refused"], 3);
  EXPECT_EQ(summary["utilisation"], 1.0);
  EXPECT_EQ(summary["pristine"], false);
  EXPECT_EQ(run.summary->live, 1u);
}

// "alloc a 1 => ok 0 0 1MiB": each line's answer is beside it; all is freed at the end.
void PlayGolden(const std::string& name, ReplayOptions options) {
  std::ifstream in(LAMINA_SOURCE_DIR "/tests/data/layers/" + name);
  ASSERT_TRUE(in.is_open());
  std::string trace, line;
  std::vector<std::string> expected;
  while (std::getline(in, line)) {
    const size_t arrow = line[0] == '#' ? std::string::npos : line.find("=>");
    trace += line.substr(0, arrow) + "\n";
    if (arrow != std::string::npos) expected.push_back(line);
  }
  const Played run = Play(trace, options);
  ASSERT_OK(run.summary);
  ASSERT_EQ(run.lines.size(), expected.size() + 1);
  for (size_t i = 0; i < expected.size(); ++i) {
    std::istringstream words(expected[i].substr(expected[i].find("=>") + 2));
    std::string result, device, offset, held;
    words >> result >> device >> offset >> held;
    EXPECT_EQ(run.lines[i]["result"], result) << expected[i];
    ASSERT_EQ(run.lines[i].contains("offset"), result == "ok") << expected[i] << run.lines[i];
    if (result != "ok") continue;
    EXPECT_EQ(run.lines[i]["device"], std::stoul(device)) << expected[i];
    EXPECT_EQ(run.lines[i]["offset"], *ParseBytes(offset, name)) << expected[i];
    EXPECT_EQ(run.lines[i]["held"], *ParseBytes(held, name)) << expected[i];
  }
  EXPECT_TRUE(run.summary->pristine);
  EXPECT_EQ(run.summary->held_bytes, 0u);
}

TEST(Replay, GoldenTraces) {
  PlayGolden("classic.golden", Classic());
  PlayGolden("classic_two_devices.golden", Classic(2));
  PlayGolden("dense.golden", {Policy::kDense, 4ULL << 30, 1});
}

TEST(Replay, ASmallerClassicDeviceIsOneOfTheClasses) {
  const Played run = Play("alloc a 2GiB\nalloc b 5GiB\nalloc c 257MiB\n", {Policy::kClassic, 1ULL << 30, 1});
  ASSERT_OK(run.summary);
  EXPECT_EQ(run.lines[0]["result"], "not-enough-space") << "a class there is, though never room for it";
  EXPECT_EQ(run.lines[1]["result"], "invalid-size");
  EXPECT_EQ(run.lines[2]["held"], 1ULL << 30);
}

TEST(Replay, PristineAfterAllIsFreed) {
  for (const Policy policy : {Policy::kClassic, Policy::kDense}) {
    const Played run =
        Play("alloc a 3MiB\nalloc b 70MiB\nalloc c 5\nfree b\nfree a\nfree c\n", {policy, 1ULL << 30, 2});
    ASSERT_OK(run.summary);
    EXPECT_TRUE(run.summary->pristine);
    EXPECT_EQ(run.lines.back()["summary"]["pristine"], true);
    EXPECT_EQ(run.lines.back()["summary"]["held"], 0);
    EXPECT_EQ(run.lines.back()["summary"]["capacity"], 2ULL << 30);
  }
}

TEST(Replay, AnEmptyTraceIsASummary) {
  const Played run = Play("", Classic());
  ASSERT_OK(run.summary);
  ASSERT_EQ(run.lines.size(), 1u);
  EXPECT_EQ(run.lines[0]["summary"]["utilisation"], 0.0);
  EXPECT_EQ(run.lines[0]["summary"]["pristine"], true);
}

TEST(Replay, TheNextDeviceIsTakenWhenTheFirstIsFull) {
  const Played run = Play("alloc a 4GiB\nalloc b 4GiB\nalloc c 1\nfree a\nalloc c 1\n", Classic(2));
  ASSERT_OK(run.summary);
  EXPECT_EQ(run.lines[1]["device"], 1);
  EXPECT_EQ(run.lines[2]["result"], "not-enough-space");
  EXPECT_EQ(run.lines[4]["device"], 0) << "a name whose allocation failed may be tried again";
}

TEST(Replay, ABadLineIsNamedWithItsText) {
  for (const std::string bad : {"allocate b 1MiB", "alloc b", "alloc b 1MiB 2", "alloc b -1", "alloc b lots",
                                "free", "free a b", "alloc b 1.5B", "alloc a 1MiB"}) {
    const Played run = Play("alloc a 1MiB\n\n" + bad + "\nfree a\n", Classic());
    ASSERT_THAT(run.summary, testing::HasStatus(absl::StatusCode::kInvalidArgument)) << bad;
    const std::string message(run.summary.status().message());
    EXPECT_NE(message.find("line 3"), std::string::npos) << message;
    EXPECT_NE(message.find(bad), std::string::npos) << message;
    EXPECT_EQ(run.lines.size(), 1u) << "what came before it, and no summary";
  }
}

TEST(Replay, BadOptions) {
  EXPECT_THAT(Play("", {Policy::kClassic, 3 * kMi, 1}).summary,
              testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Play("", {Policy::kDense, 4ULL << 30, 0}).summary,
              testing::HasStatus(absl::StatusCode::kInvalidArgument));
}

TEST(Replay, NamesThatAreNotTextStayValidJson) {
  const Played run = Play("alloc \xff\"\\ 1\nfree \xff\"\\\n", Classic());
  ASSERT_OK(run.summary);
  EXPECT_EQ(run.lines[1]["result"], "ok");
}

}  // namespace
}  // namespace lamina::layers
