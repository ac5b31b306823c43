#include "guest/protocol/guest_errors.h"

#include <gtest/gtest.h>

#include "base/ttrpc/fake_caller.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

TEST(GuestErrors, WhatCanBeShownIsShown) {
  const absl::Status error = absl::NotFoundError("crun create: exec \"/bin/x\": No such file; C:\\x");
  EXPECT_EQ(GuestError(error), error);
  EXPECT_OK(GuestError(absl::OkStatus()));
}

TEST(GuestErrors, WhatWouldForgeALogLineOrBreakAnAnswerIsEscaped) {
  EXPECT_EQ(GuestError(absl::InternalError("a\nlevel=info\x1b[2J\xff")),
            absl::InternalError("a\\x0alevel=info\\x1b[2J\\xff"));
}

TEST(GuestErrors, FourMebibytesAreCut) {
  for (const char c : {'x', '\n'}) {
    const absl::Status error = GuestError(absl::InternalError(std::string(4 << 20, c)));
    EXPECT_THAT(error, testing::HasStatus(absl::StatusCode::kInternal));
    EXPECT_LE(error.message().size(), 512u);
    EXPECT_GT(error.message().size(), 500u);
  }
}

TEST(GuestErrors, AConnectionsErrorsAreOfThatForm) {
  auto fake = std::make_unique<ttrpc::FakeCaller>();
  fake->FailAt(0, absl::UnavailableError("a\nb"));
  const auto agent = WithGuestErrors(std::move(fake));
  EXPECT_THAT(ttrpc::Call(*agent, kShutdown, agent::v1::Empty(), std::chrono::seconds(1)),
              testing::HasStatus(absl::StatusCode::kUnavailable, "a\\x0ab"));
  EXPECT_OK(ttrpc::Call(*agent, kShutdown, agent::v1::Empty(), std::chrono::seconds(1)));
}

}  // namespace
}  // namespace lamina::guest
