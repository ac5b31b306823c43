#include "guest/protocol/socket_stream.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

std::pair<UniqueFd, UniqueFd> Pair() {
  int ends[2] = {-1, -1};
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

class SocketStreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto [host, guest] = Pair();
    host_ = StdioMux::Create(std::move(host));
    guest_ = StdioMux::Create(std::move(guest), {.early_bytes = kMaxEarlyBytes});
  }
  // Two ends of one connection, joined by the muxes; what a client and a server have.
  std::pair<UniqueFd, UniqueFd> Join(uint32_t stream) {
    auto [server, servers_end] = Pair();
    auto [client, clients_end] = Pair();
    EXPECT_OK(JoinSocketStream(*host_, stream, std::move(servers_end)));
    EXPECT_OK(JoinSocketStream(*guest_, stream, std::move(clients_end)));
    return {std::move(client), std::move(server)};
  }
  static std::string ReadAll(int fd) {
    std::string all;
    char buffer[65536];
    for (ssize_t n; (n = read(fd, buffer, sizeof buffer)) > 0;) all.append(buffer, static_cast<size_t>(n));
    return all;
  }
  static void Send(int fd, std::string_view text) {
    while (!text.empty()) {
      const ssize_t n = send(fd, text.data(), text.size(), MSG_NOSIGNAL);
      ASSERT_GT(n, 0);
      text.remove_prefix(static_cast<size_t>(n));
    }
  }
  std::unique_ptr<StdioMux> host_, guest_;
};

TEST_F(SocketStreamTest, EachDirectionEndsByItself) {
  auto [client, server] = Join(7);
  Send(client.get(), "a question");
  shutdown(client.get(), SHUT_WR);
  EXPECT_EQ(ReadAll(server.get()), "a question");
  Send(server.get(), "an answer after the question's end");
  server.reset();
  EXPECT_EQ(ReadAll(client.get()), "an answer after the question's end");
}

TEST_F(SocketStreamTest, MuchGoesBothWaysAtOnce) {
  auto [client, server] = Join(7);
  const std::string much(3 << 20, 'x');
  std::thread answers([&, fd = server.get()] {
    Send(fd, much);
    shutdown(fd, SHUT_WR);
  });
  std::thread asks([&, fd = client.get()] {
    Send(fd, much);
    shutdown(fd, SHUT_WR);
  });
  std::string got;
  std::thread reads([&, fd = server.get()] { got = ReadAll(fd); });
  EXPECT_TRUE(ReadAll(client.get()) == much);
  for (std::thread* thread : {&answers, &asks, &reads}) thread->join();
  EXPECT_TRUE(got == much);
}

TEST_F(SocketStreamTest, OneThatReceivesNoMoreBreaksTheSender) {
  auto [client, server] = Join(7);
  server.reset();
  EXPECT_EQ(ReadAll(client.get()), "");
  // What is sent breaks there, and then here.
  while (send(client.get(), "x", 1, MSG_NOSIGNAL) == 1) std::this_thread::yield();
  EXPECT_EQ(errno, EPIPE);
}

TEST_F(SocketStreamTest, AStreamThatIsOverIsForgotten) {
  for (int i = 0; i < 3; ++i) {
    auto [client, server] = Join(7);
    client.reset();
    EXPECT_EQ(ReadAll(server.get()), "");
    server.reset();
    // Until then the number is taken on one of the sides.
    const auto free = [&](StdioMux& mux) {
      auto [one, other] = Pair();
      const bool attached = mux.AttachSink(7, std::move(one), nullptr).ok();
      if (attached) mux.Close(7);
      return attached;
    };
    while (!free(*host_) || !free(*guest_)) std::this_thread::yield();
  }
}

TEST_F(SocketStreamTest, NothingIsLeftOfOneThatCannotBe) {
  auto [one, other] = Pair();
  EXPECT_THAT(JoinSocketStream(*host_, 0, std::move(one)),
              testing::HasStatus(absl::StatusCode::kInvalidArgument, "stream"));
  EXPECT_EQ(ReadAll(other.get()), "");
}

}  // namespace
}  // namespace lamina::guest
