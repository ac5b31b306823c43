#include "cri/agent_link.h"

#include <gtest/gtest.h>

#include <future>

#include "guest/protocol/contract.h"
#include "tests/testing/status_matchers.h"
#include "tests/unit/cri/pod_kit.h"

namespace lamina::cri {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasStatus;

class AgentLinkTest : public ::testing::Test {
 protected:
  AgentLink Link() {
    return AgentLink({.dial = [this]() -> absl::StatusOr<std::unique_ptr<ttrpc::Caller>> {
                        ++dials_;
                        if (!dial_error_.ok()) return dial_error_;
                        return guest_.Connect();
                      },
                      .alive = [this] { return alive_; },
                      .given_up = [this](const absl::Status& why) { given_up_.push_back(why); },
                      .patience = milliseconds(200)});
  }

  FakeGuest guest_;
  int dials_ = 0;
  absl::Status dial_error_, alive_;
  std::vector<absl::Status> given_up_;
};

TEST_F(AgentLinkTest, NothingIsCalledBeforeItIsOpen) {
  AgentLink link = Link();
  EXPECT_FALSE(link.connected());
  EXPECT_THAT(ttrpc::Call(link, guest::kPids, agent::v1::ProcessRequest(), seconds(1)),
              HasStatus(StatusCode::kFailedPrecondition, "does not run"));
  ASSERT_OK(link.Open(seconds(1)));
  EXPECT_TRUE(link.connected());
  ASSERT_OK(ttrpc::Call(link, guest::kPids, agent::v1::ProcessRequest(), seconds(1)));
  EXPECT_EQ(dials_, 1);
}

TEST_F(AgentLinkTest, WhatDoesNoHarmTwiceIsCalledAgainTheRestFailsOnce) {
  AgentLink link = Link();
  ASSERT_OK(link.Open(seconds(1)));
  guest_.BreakConnections();
  ASSERT_OK(ttrpc::Call(link, guest::kPids, agent::v1::ProcessRequest(), seconds(1)));
  EXPECT_EQ(dials_, 2);
  guest_.BreakConnections();
  EXPECT_THAT(ttrpc::Call(link, guest::kStartProcess, agent::v1::ProcessRequest(), seconds(1)),
              HasStatus(StatusCode::kUnavailable, "ended"));
  ASSERT_OK(ttrpc::Call(link, guest::kStartProcess, agent::v1::ProcessRequest(), seconds(1)));
  EXPECT_EQ(dials_, 3);
  EXPECT_TRUE(given_up_.empty());
}

TEST_F(AgentLinkTest, AGuestsErrorIsShortAndPrintable) {
  AgentLink link = Link();
  ASSERT_OK(link.Open(seconds(1)));
  guest_.calls->Handle(guest::kPids,
                       [](const agent::v1::ProcessRequest&) -> absl::StatusOr<agent::v1::PidsResponse> {
                         std::string text = "no\n\x1b[2J";
                         text.append(4 << 20, 'x');
                         return absl::InternalError(text);
                       });
  const absl::Status status =
      ttrpc::Call(link, guest::kPids, agent::v1::ProcessRequest(), seconds(1)).status();
  EXPECT_THAT(status, HasStatus(StatusCode::kInternal, "no\\n\\x1b[2Jxxx"));
  EXPECT_EQ(status.message().size(), 512U);
}

TEST_F(AgentLinkTest, AnErrorOfTheGuestIsNoLostConnection) {
  AgentLink link = Link();
  ASSERT_OK(link.Open(seconds(1)));
  guest_.calls->Handle(guest::kPids,
                       [](const agent::v1::ProcessRequest&) -> absl::StatusOr<agent::v1::PidsResponse> {
                         return absl::UnavailableError("try again later");
                       });
  EXPECT_THAT(ttrpc::Call(link, guest::kPids, agent::v1::ProcessRequest(), seconds(1)),
              HasStatus(StatusCode::kUnavailable, "later"));
  EXPECT_EQ(dials_, 1);
}

TEST_F(AgentLinkTest, AGuestThatIsNotToBeReachedIsGivenUpOnceAndForEver) {
  AgentLink link = Link();
  ASSERT_OK(link.Open(seconds(1)));
  guest_.BreakConnections();
  dial_error_ = absl::UnavailableError("nobody answers");
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(ttrpc::Call(link, guest::kPids, agent::v1::ProcessRequest(), seconds(1)),
                HasStatus(StatusCode::kUnavailable, "does not answer any more: nobody answers"));
  }
  EXPECT_EQ(given_up_.size(), 1U);
  EXPECT_FALSE(link.connected());
}

TEST_F(AgentLinkTest, AConnectionThatEndedWithItsVmIsNotLookedFor) {
  AgentLink link = Link();
  ASSERT_OK(link.Open(seconds(1)));
  guest_.BreakConnections();
  alive_ = absl::UnavailableError("QEMU is gone");
  EXPECT_THAT(ttrpc::Call(link, guest::kPids, agent::v1::ProcessRequest(), seconds(1)),
              HasStatus(StatusCode::kUnavailable, "QEMU is gone"));
  EXPECT_EQ(dials_, 1);
  EXPECT_TRUE(given_up_.empty());
}

TEST_F(AgentLinkTest, AWatcherSeesManyConnectionsAndCloseEndsIt) {
  AgentLink link = Link();
  ASSERT_OK(link.Open(seconds(1)));
  agent::v1::ProcessRequest web;
  web.set_container_id("web");
  auto end = std::async(std::launch::async,
                        [&] { return ttrpc::Call(link, guest::kWaitProcess, web, ttrpc::kNoTimeout); });
  for (int waits = 1; waits <= 3; ++waits) {
    while (guest_.calls->Count("WaitProcess") < waits) std::this_thread::yield();
    guest_.BreakConnections();
  }
  while (guest_.calls->Count("WaitProcess") < 4) std::this_thread::yield();
  guest_.End("web", 9);
  const auto answer = end.get();
  ASSERT_OK(answer);
  EXPECT_EQ(answer->exit_status(), 9U);

  agent::v1::ProcessRequest db;
  db.set_container_id("db");
  end = std::async(std::launch::async,
                   [&] { return ttrpc::Call(link, guest::kWaitProcess, db, ttrpc::kNoTimeout); });
  while (guest_.calls->Count("WaitProcess") < 5) std::this_thread::yield();
  link.Close();
  // It may have begun to wait an instant after: then the connection's end is what it sees.
  guest_.BreakConnections();
  EXPECT_THAT(end.get(), HasStatus(StatusCode::kCancelled, ""));
  EXPECT_TRUE(given_up_.empty());
}

}  // namespace
}  // namespace lamina::cri
