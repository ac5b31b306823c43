// Who connects to a server's socket and may not ask gets nothing, and takes nothing from others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "base/ttrpc/client.h"
#include "base/ttrpc/server.h"
#include "base/unix_peer.h"
#include "base/unix_socket.h"
#include "proto/agent.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/stranger.h"
#include "tests/testing/temp_dir.h"

namespace lamina::ttrpc {
namespace {

using agent::v1::ProcessRequest;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::StrangerIsClosed;

class PeerTest : public ::testing::Test {
 protected:
  void Serve(ServerOptions options = {}) {
    server_ = std::make_unique<Server>(options);
    server_->Handle<ProcessRequest, ProcessRequest>(
        "s", "Echo",
        [](const CallContext&, const ProcessRequest& r) -> absl::StatusOr<ProcessRequest> { return r; });
    ASSERT_OK(server_->Listen(path_));
    ASSERT_EQ(chmod(dir_.path().c_str(), 0755), 0);
    ASSERT_EQ(chmod(path_.c_str(), 0666), 0);
  }
  absl::Status Echo() {
    auto client = Client::Dial(path_, "peer");
    if (!client.ok()) return client.status();
    return (*client)->Call("s", "Echo", ProcessRequest(), nullptr, seconds(30));
  }
  static bool EndComes(int fd) {
    pollfd readable{fd, POLLIN, 0};
    char byte;
    return poll(&readable, 1, 20'000) == 1 && recv(fd, &byte, 1, MSG_DONTWAIT) == 0;
  }

  testing::TempDir dir_;
  const std::string path_ = dir_ / "s.sock";
  std::unique_ptr<Server> server_;
};

TEST_F(PeerTest, AnotherUserIsClosedHoweverSilentHeIs) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root, to be somebody else";
  Serve();
  ::testing::internal::CaptureStderr();
  EXPECT_TRUE(StrangerIsClosed(path_, 300));
  EXPECT_OK(Echo());
  server_.reset();
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, AllOf(HasSubstr(path_ + ": user 65534 (process "),
                         HasSubstr("is turned away: only root and user 0")));
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 1) << log;
}

TEST_F(PeerTest, OneConnectionTooManyIsClosedAndTheOthersGoOn) {
  ServerOptions options;
  options.max_connections = 2;
  Serve(options);
  absl::StatusOr<UniqueFd> silent = ConnectUnix(path_);
  ASSERT_OK(silent);
  auto client = Client::Dial(path_, "peer");
  ASSERT_OK(client);
  ASSERT_OK((*client)->Call("s", "Echo", ProcessRequest(), nullptr, seconds(30)));
  const absl::StatusOr<UniqueFd> third = ConnectUnix(path_);
  ASSERT_OK(third);
  EXPECT_TRUE(EndComes(third->get()));
  EXPECT_OK((*client)->Call("s", "Echo", ProcessRequest(), nullptr, seconds(30)));
  // With one that ends there is room again.
  silent->reset();
  absl::Status status;
  for (int i = 0; i < 1000 && !(status = Echo()).ok(); ++i) poll(nullptr, 0, 1);
  EXPECT_OK(status);
}

TEST(UnixPeerTest, RootAndOurOwnUserMayAsk) {
  EXPECT_TRUE(MayAsk({1, 0}));
  EXPECT_TRUE(MayAsk({1, geteuid()}));
  EXPECT_FALSE(MayAsk({1, geteuid() + 1}));
  EXPECT_FALSE(MayAsk({0, static_cast<uid_t>(-1)}));
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const UniqueFd one(ends[0]), other(ends[1]);
  const auto peer = PeerOf(one.get());
  ASSERT_OK(peer);
  EXPECT_EQ(peer->pid, getpid());
  EXPECT_EQ(peer->uid, geteuid());
  EXPECT_NOT_OK(PeerOf(0 - 1));
}

}  // namespace
}  // namespace lamina::ttrpc
