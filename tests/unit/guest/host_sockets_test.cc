#include "guest/agent/host_sockets.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "base/unix_socket.h"
#include "guest/protocol/contract.h"
#include "guest/protocol/socket_stream.h"
#include "proto/agent.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::guest {
namespace {

using absl::StatusCode;
using testing::HasStatus;

class HostSocketsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    host_ = StdioMux::Create(UniqueFd(ends[0]));
    mux_ = StdioMux::Create(UniqueFd(ends[1]), {.early_bytes = kMaxEarlyBytes});
    sockets_ = std::make_unique<HostSockets>(dir_.path(), *mux_);
  }
  absl::Status Offer(const std::string& name) {
    agent::v1::OfferSocketRequest request;
    request.set_name(name);
    request.mutable_owner()->set_uid(getuid());
    request.mutable_owner()->set_gid(getgid());
    request.mutable_owner()->set_mode(0662);
    return sockets_->Offer(request);
  }
  static agent::v1::JoinSocketRequest Join(const std::string& name, uint64_t connection, uint32_t stream) {
    agent::v1::JoinSocketRequest request;
    request.set_name(name);
    request.set_connection(connection);
    request.set_stream(stream);
    return request;
  }
  UniqueFd Connect(const std::string& name) {
    auto client = ConnectUnix(dir_ / ("sockets/" + name));
    EXPECT_OK(client.status());
    return client.ok() ? std::move(*client) : UniqueFd();
  }
  const testing::TempDir dir_;
  std::unique_ptr<StdioMux> host_, mux_;
  std::unique_ptr<HostSockets> sockets_;
};

TEST_F(HostSocketsTest, AConnectionIsJoinedWithAStream) {
  ASSERT_OK(Offer("s"));
  ASSERT_OK(Offer("s"));
  struct stat info {};
  ASSERT_EQ(stat((dir_ / "sockets/s").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0662U);
  const UniqueFd client = Connect("s");
  const auto connection = sockets_->Accept("s");
  ASSERT_OK(connection);
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const UniqueFd server(ends[0]);
  ASSERT_OK(JoinSocketStream(*host_, 9, UniqueFd(ends[1])));
  ASSERT_OK(sockets_->Join(Join("s", *connection, 9)));
  EXPECT_THAT(sockets_->Join(Join("s", *connection, 9)), HasStatus(StatusCode::kNotFound, "socket s"));
  char text[8] = "";
  ASSERT_EQ(write(client.get(), "ask", 3), 3);
  ASSERT_EQ(read(server.get(), text, sizeof text), 3);
  ASSERT_EQ(write(server.get(), "tell", 4), 4);
  ASSERT_EQ(read(client.get(), text, sizeof text), 4);
}

TEST_F(HostSocketsTest, OneThatTheHostDoesNotWantIsClosed) {
  ASSERT_OK(Offer("s"));
  const UniqueFd client = Connect("s");
  const auto connection = sockets_->Accept("s");
  ASSERT_OK(connection);
  ASSERT_OK(sockets_->Join(Join("s", *connection, 0)));
  char byte;
  EXPECT_EQ(read(client.get(), &byte, 1), 0);
}

TEST_F(HostSocketsTest, OfMoreThanCanWaitTheOldestAreClosed) {
  ASSERT_OK(Offer("s"));
  std::vector<UniqueFd> clients;
  uint64_t last = 0;
  for (size_t i = 0; i <= kMaxWaitingConnections; ++i) {
    clients.push_back(Connect("s"));
    const auto connection = sockets_->Accept("s");
    ASSERT_OK(connection);
    last = *connection;
  }
  char byte;
  EXPECT_EQ(read(clients.front().get(), &byte, 1), 0);
  EXPECT_OK(sockets_->Join(Join("s", last, 0)));
}

TEST_F(HostSocketsTest, CloseEndsWhoWaits) {
  ASSERT_OK(Offer("s"));
  absl::Status accepted;
  std::thread waits([&] { accepted = sockets_->Accept("s").status(); });
  sockets_->Close();
  waits.join();
  EXPECT_THAT(accepted,
              ::testing::AnyOf(HasStatus(StatusCode::kCancelled), HasStatus(StatusCode::kNotFound)));
  EXPECT_NE(access((dir_ / "sockets/s").c_str(), F_OK), 0);
  EXPECT_THAT(Offer("t"), HasStatus(StatusCode::kCancelled));
}

TEST_F(HostSocketsTest, BadNamesAndTooManyAreErrors) {
  EXPECT_THAT(Offer("../s"), HasStatus(StatusCode::kInvalidArgument, "../s"));
  EXPECT_THAT(sockets_->Accept("none"), HasStatus(StatusCode::kNotFound, "none"));
  EXPECT_THAT(sockets_->Join(Join("none", 1, 1)), HasStatus(StatusCode::kNotFound, "none"));
  for (size_t i = 0; i < kMaxHostSockets; ++i) ASSERT_OK(Offer("s" + std::to_string(i)));
  EXPECT_THAT(Offer("more"), HasStatus(StatusCode::kResourceExhausted, "64"));
}

}  // namespace
}  // namespace lamina::guest
