#include "guest/protocol/greeting.h"

#include <gtest/gtest.h>

#include "base/ttrpc/fake_caller.h"
#include "guest/protocol/contract.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

using agent::v1::HelloRequest;
using agent::v1::HelloResponse;
using std::chrono::seconds;
using testing::HasStatus;

TEST(Greeting, SaysItsProtocolWithASeedThatIsNewEachTime) {
  ttrpc::FakeCaller agent;
  std::vector<HelloRequest> heard;
  agent.Handle(kHello, [&](const HelloRequest& request) -> absl::StatusOr<HelloResponse> {
    heard.push_back(request);
    HelloResponse answer;
    answer.set_protocol_version(kProtocolVersion);
    answer.set_mem_total_bytes(4096);
    return answer;
  });
  for (int i = 0; i < 2; ++i) {
    const auto answer = Greet(agent, seconds(1));
    ASSERT_OK(answer);
    EXPECT_EQ(answer->mem_total_bytes(), 4096u);
  }
  ASSERT_EQ(heard.size(), 2u);
  EXPECT_EQ(heard[0].protocol_version(), kProtocolVersion);
  EXPECT_EQ(heard[0].random_seed().size(), kMaxRandomSeedBytes);
  EXPECT_NE(heard[0].random_seed(), heard[1].random_seed());
}

TEST(Greeting, AGuestOfAnotherProtocolIsRefused) {
  ttrpc::FakeCaller agent;
  agent.Handle(kHello, [&](const HelloRequest&) -> absl::StatusOr<HelloResponse> {
    HelloResponse answer;
    answer.set_protocol_version(kProtocolVersion + 1);
    answer.set_agent_version("9.\n" + std::string(100, 'x'));
    return answer;
  });
  EXPECT_THAT(Greet(agent, seconds(1)), HasStatus(absl::StatusCode::kFailedPrecondition, "agent 9.\\nxxx"));
  EXPECT_EQ(agent.Count("AdjustClock"), 0);
}

TEST(Greeting, ItsErrorsAreTheCalls) {
  ttrpc::FakeCaller agent;
  agent.FailAt(0, absl::DeadlineExceededError("no answer"));
  EXPECT_THAT(Greet(agent, seconds(1)), HasStatus(absl::StatusCode::kDeadlineExceeded, "no answer"));
}

}  // namespace
}  // namespace lamina::guest
