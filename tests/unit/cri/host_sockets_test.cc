#include "cri/host_sockets.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <future>

#include "base/ttrpc/fake_caller.h"
#include "base/unix_socket.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

using absl::StatusCode;
using agent::v1::AcceptSocketResponse;
using agent::v1::JoinSocketRequest;
using testing::HasStatus;

// A guest in which one connection is made, and no other.
class HostSocketsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(dir_ / "run");
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    mux_ = guest::StdioMux::Create(UniqueFd(ends[0]));
    guest_end_ = UniqueFd(ends[1]);
    agent_.Handle(guest::kAcceptSocket,
                  [this](const agent::v1::SocketRequest&) -> absl::StatusOr<AcceptSocketResponse> {
                    if (accepted_++ > 0) return agent_.WaitCancelled(std::chrono::seconds(60));
                    AcceptSocketResponse response;
                    response.set_connection(5);
                    return response;
                  });
    agent_.Handle(guest::kJoinSocket,
                  [this](const JoinSocketRequest& request) -> absl::StatusOr<agent::v1::Empty> {
                    joined_.set_value(request);
                    return agent::v1::Empty();
                  });
  }
  std::unique_ptr<HostSockets> Make(std::vector<std::string> allowed) {
    auto sockets = std::make_unique<HostSockets>(std::move(allowed));
    sockets->Attach(agent_, *mux_, [] { return true; });
    return sockets;
  }
  void End(std::unique_ptr<HostSockets> sockets) {
    sockets->Stop();
    agent_.Close();
  }
  const testing::TempDir dir_;
  const std::string path_ = dir_ / "run/app.sock";
  std::unique_ptr<guest::StdioMux> mux_;
  UniqueFd guest_end_;
  ttrpc::FakeCaller agent_;
  std::atomic<int> accepted_{0};
  std::promise<JoinSocketRequest> joined_;
};

TEST_F(HostSocketsTest, AConnectionOfTheGuestsReachesTheHostsSocket) {
  const auto listener = ListenUnix(path_);
  ASSERT_OK(listener);
  auto sockets = Make({path_});
  const auto in_guest = sockets->Offer(path_);
  ASSERT_OK(in_guest);
  EXPECT_EQ(in_guest->rfind("/run/lamina/sockets/s", 0), 0U) << *in_guest;
  const UniqueFd server(accept(listener->get(), nullptr, nullptr));
  EXPECT_TRUE(server);
  const JoinSocketRequest join = joined_.get_future().get();
  EXPECT_EQ(join.connection(), 5U);
  EXPECT_GE(join.stream(), 1U << 31) << "no process's stream";
  EXPECT_EQ(sockets->Offer(path_).value_or(""), *in_guest);
  EXPECT_EQ(agent_.Count("OfferSocket"), 1);
  End(std::move(sockets));
}

TEST_F(HostSocketsTest, WhereNobodyListensTheGuestsConnectionIsClosed) {
  { const auto listener = ListenUnix(path_); }
  auto sockets = Make({dir_ / "run/"});
  ASSERT_OK(sockets->Offer(path_));
  EXPECT_EQ(joined_.get_future().get().stream(), 0U);
  End(std::move(sockets));
}

TEST_F(HostSocketsTest, WhatTheNodeDoesNotAllowIsRefusedWithPathAndOption) {
  const auto listener = ListenUnix(path_);
  ASSERT_OK(listener);
  std::filesystem::create_symlink(path_, dir_ / "run/link");
  for (const auto& allowed : std::vector<std::vector<std::string>>{
           {}, {dir_ / "run"}, {dir_ / "run/app.soc"}, {dir_ / "ru/"}, {dir_ / "none/"}, {path_ + "/"}}) {
    EXPECT_THAT(Make(allowed)->Offer(path_), HasStatus(StatusCode::kPermissionDenied, path_))
        << allowed.size();
    EXPECT_THAT(Make(allowed)->Offer(path_), HasStatus(StatusCode::kPermissionDenied, "volumes.sockets"));
  }
  EXPECT_EQ(agent_.Count("OfferSocket"), 0);
  // A link is what it leads to.
  EXPECT_THAT(Make({dir_ / "elsewhere"})->Offer(dir_ / "run/link"), HasStatus(StatusCode::kPermissionDenied));
  EXPECT_THAT(Make({path_})->Offer(dir_ / "none"), HasStatus(StatusCode::kNotFound, "none"));
}

// A guest that says without end that somebody connected.
TEST_F(HostSocketsTest, NoMoreConnectionsAreOpenThanThereArePlaces) {
  const auto listener = ListenUnix(path_, 1024);
  ASSERT_OK(listener);
  std::atomic<size_t> joins{0};
  agent_.Handle(guest::kAcceptSocket,
                [&](const agent::v1::SocketRequest&) -> absl::StatusOr<AcceptSocketResponse> {
                  ++accepted_;
                  return AcceptSocketResponse();
                });
  std::promise<void> full;
  agent_.Handle(guest::kJoinSocket,
                [&](const JoinSocketRequest& request) -> absl::StatusOr<agent::v1::Empty> {
                  EXPECT_NE(request.stream(), 0U);
                  if (++joins == kMaxOpenConnections) full.set_value();
                  return agent::v1::Empty();
                });
  auto sockets = Make({path_});
  ASSERT_OK(sockets->Offer(path_));
  full.get_future().get();
  EXPECT_EQ(accepted_, static_cast<int>(kMaxOpenConnections));
  End(std::move(sockets));
  EXPECT_EQ(joins, kMaxOpenConnections) << "none came in while all places were taken";
}

TEST_F(HostSocketsTest, AGuestThatRefusesIsAnErrorAndCanBeAskedAgain) {
  const auto listener = ListenUnix(path_);
  ASSERT_OK(listener);
  auto sockets = Make({path_});
  agent_.FailAt(0, absl::ResourceExhaustedError("injected"));
  EXPECT_THAT(sockets->Offer(path_), HasStatus(StatusCode::kResourceExhausted, path_));
  agent_.FailAt(-1);
  EXPECT_OK(sockets->Offer(path_));
  joined_.get_future().get();
  End(std::move(sockets));
}

}  // namespace
}  // namespace lamina::cri
