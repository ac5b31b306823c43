// Others' words in laminad's log and in what `lamina` prints.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "base/subprocess.h"
#include "base/units.h"
#include "tests/integration/node/node_kit.h"
#include "tests/testing/status_matchers.h"

namespace lamina::node {
namespace {

using lamina::testing::HasStatus;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(ForeignText, IsOneLineOfLaminadsLog) {
  const auto result =
      RunCommand({LAMINA_BIN_DIR "/laminad", "--config", "/no/such\x1b[2J\nfile"}, std::chrono::seconds(20));
  ASSERT_OK(result);
  EXPECT_EQ(result->exit_code, 2);
  EXPECT_THAT(result->output, AllOf(HasSubstr("/no/such\\x1b[2J\\nfile"), Not(HasSubstr("\x1b"))));
}

TEST(ForeignText, LeavesTheTerminalAlone) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  laminad::v1::ClaimRequest request = laminad.ClaimOf("one", 320 * kMiB);
  request.set_pod_name("pod\x1b[2J");
  EXPECT_THAT(laminad.Call("Claim", request, nullptr),
              HasStatus(absl::StatusCode::kInvalidArgument, "the pod's name \"pod\\x1b[2J\""));
  request = laminad.ClaimOf("one", 320 * kMiB);
  request.mutable_sizing()->add_reasons("because\x1b[2J\xc2\x9b" + std::string(1 << 20, 'x'));
  laminad::v1::ClaimResponse response;
  ASSERT_OK(laminad.Call("Claim", request, &response));
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"explain", "one"}, {"explain", "one", "-o", "json"}}) {
    const CliAnswer answer = RunLamina(words, &laminad);
    EXPECT_EQ(answer.exit_code, 0) << answer.output;
    EXPECT_THAT(answer.output,
                AllOf(HasSubstr("because"), Not(HasSubstr("\x1b")), Not(HasSubstr("\xc2\x9b"))));
    EXPECT_LT(answer.output.size(), 10'000u);
  }
}

}  // namespace
}  // namespace lamina::node
