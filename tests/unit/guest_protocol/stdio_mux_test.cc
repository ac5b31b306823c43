#include "guest/protocol/stdio_mux.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <future>
#include <random>
#include <thread>

#include "tests/testing/pty_port.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

struct Pipe {
  Pipe() {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) abort();
    read.reset(fds[0]);
    write.reset(fds[1]);
  }
  UniqueFd read, write;
};

std::string ReadAll(int fd) {
  std::string all;
  char buffer[65536];
  for (;;) {
    const ssize_t n = read(fd, buffer, sizeof buffer);
    if (n <= 0) return all;
    all.append(buffer, static_cast<size_t>(n));
  }
}

void WriteAll(int fd, std::string_view data) {
  while (!data.empty()) {
    const ssize_t n = write(fd, data.data(), data.size());
    if (n <= 0) return;
    data.remove_prefix(static_cast<size_t>(n));
  }
}

class Mux : public ::testing::Test {
 protected:
  Mux() {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) abort();
    a_ = StdioMux::Create(UniqueFd(fds[0]), false);
    b_ = StdioMux::Create(UniqueFd(fds[1]), false);
  }
  // A stream from a pipe on one side to a pipe on the other.
  struct Flow {
    UniqueFd in, out;
    std::future<void> sent, written;
  };
  Flow Connect(uint32_t id) {
    Pipe in, out;
    auto sent = std::make_shared<std::promise<void>>(), written = std::make_shared<std::promise<void>>();
    Flow flow{std::move(in.write), std::move(out.read), sent->get_future(), written->get_future()};
    EXPECT_OK(a_->AttachSource(id, std::move(in.read), [sent] { sent->set_value(); }));
    EXPECT_OK(b_->AttachSink(id, std::move(out.write), [written] { written->set_value(); }));
    return flow;
  }

  std::unique_ptr<StdioMux> a_, b_;
};

TEST_F(Mux, CarriesBytesAndTheEnd) {
  Flow flow = Connect(1);
  WriteAll(flow.in.get(), "hello");
  flow.in.reset();
  EXPECT_EQ(ReadAll(flow.out.get()), "hello");
  flow.sent.get();
  flow.written.get();
}

TEST_F(Mux, ManyStreamsKeepTheirBytes) {
  constexpr int kStreams = 60;
  std::vector<std::thread> writers;
  std::vector<std::future<std::string>> readers;
  std::vector<Flow> flows;
  std::vector<std::string> data(kStreams);
  std::mt19937 random(3);
  for (int i = 0; i < kStreams; ++i) {
    data[i].resize(random() % 600'000);
    for (char& c : data[i]) c = static_cast<char>(random());
    flows.push_back(Connect(static_cast<uint32_t>(i + 1)));
  }
  for (int i = 0; i < kStreams; ++i) {
    writers.emplace_back([&, i] {
      WriteAll(flows[i].in.get(), data[i]);
      flows[i].in.reset();
    });
    readers.push_back(std::async(std::launch::async, [&, i] { return ReadAll(flows[i].out.get()); }));
  }
  for (int i = 0; i < kStreams; ++i) EXPECT_EQ(readers[i].get(), data[i]) << i;
  for (auto& writer : writers) writer.join();
}

TEST_F(Mux, AnUnreadStreamStallsOnlyItself) {
  Flow stuck = Connect(1);
  std::thread flood([&] { WriteAll(stuck.in.get(), std::string(4 << 20, 'f')); });
  Flow lively = Connect(2);
  std::thread writer([&] {
    WriteAll(lively.in.get(), std::string(2 << 20, 'l'));
    lively.in.reset();
  });
  EXPECT_EQ(ReadAll(lively.out.get()).size(), 2u << 20);
  writer.join();
  // Now it is read after all, and nothing was lost.
  auto rest = std::async(std::launch::async, [&] { return ReadAll(stuck.out.get()); });
  flood.join();
  stuck.in.reset();
  EXPECT_EQ(rest.get().size(), 4u << 20);
}

TEST_F(Mux, DataBeforeTheSinkIsKept) {
  Pipe in, out;
  ASSERT_OK(a_->AttachSource(5, std::move(in.read), nullptr));
  WriteAll(in.write.get(), "early");
  in.write.reset();
  Flow other = Connect(6);  // by the time this has travelled, stream 5 has too
  WriteAll(other.in.get(), "x");
  other.in.reset();
  EXPECT_EQ(ReadAll(other.out.get()), "x");
  ASSERT_OK(b_->AttachSink(5, std::move(out.write), nullptr));
  EXPECT_EQ(ReadAll(out.read.get()), "early");
}

TEST_F(Mux, ABrokenSinkResetsTheSource) {
  Flow flow = Connect(1);
  flow.out.reset();
  std::thread flood([&] { WriteAll(flow.in.get(), std::string(8 << 20, 'f')); });
  flow.written.get();
  flood.join();  // ends because the source's pipe was closed on reset
  flow.sent.get();
  Flow next = Connect(2);
  WriteAll(next.in.get(), "fine");
  next.in.reset();
  EXPECT_EQ(ReadAll(next.out.get()), "fine");
}

TEST_F(Mux, CloseDropsAStream) {
  Flow flow = Connect(1);
  b_->Close(1);
  b_->Close(1);
  std::thread flood([&] { WriteAll(flow.in.get(), std::string(1 << 20, 'f')); });
  flood.join();
  EXPECT_OK(a_->status());
  EXPECT_OK(b_->status());
}

TEST_F(Mux, BadIdsAreRefused) {
  Pipe pipe, second;
  EXPECT_THAT(a_->AttachSource(0, std::move(pipe.read), nullptr),
              testing::HasStatus(absl::StatusCode::kInvalidArgument, "0"));
  Flow flow = Connect(1);
  EXPECT_THAT(a_->AttachSource(1, std::move(second.read), nullptr),
              testing::HasStatus(absl::StatusCode::kInvalidArgument, "stream 1"));
}

TEST(MuxPeer, WhatItSentBeforeThePortKnewOfItIsKept) {
  testing::PtyPort pty;
  {
    const UniqueFd early = pty.OpenPeer();
    WriteAll(early.get(), std::string("\5\0\0\0\1\0\0\0\5\0\0\0hello", 17));
  }
  const int port = pty.port.get();
  ASSERT_EQ(testing::PtyPort::Events(port), POLLIN | POLLHUP);
  const auto mux = StdioMux::Create(std::move(pty.port), true);
  // A pipe of one page takes eight only from a mux that has gone round several times.
  Pipe in;
  fcntl(in.write.get(), F_SETPIPE_SZ, 4096);
  ASSERT_OK(mux->AttachSource(7, std::move(in.read), [] {}));
  WriteAll(in.write.get(), std::string(8 * 4096, 'x'));
  const UniqueFd peer = pty.OpenPeer();
  Pipe out;
  ASSERT_OK(mux->AttachSink(5, std::move(out.write), [] {}));
  ASSERT_EQ(testing::PtyPort::Events(out.read.get()), POLLIN);
  char text[5];
  ASSERT_EQ(read(out.read.get(), text, sizeof text), 5);
  EXPECT_EQ(std::string(text, 5), "hello");
}

TEST(MuxPeer, OneThatBreaksTheRulesLosesTheChannel) {
  const std::vector<std::string> attacks = {
      std::string("\1\0\0\0\7\0\0\0\0\0\0\0", 12),          // unknown kind
      std::string("\0\0\0\0\1\0\0\0\1\0\0\0x", 13),         // stream 0
      std::string("\1\0\0\0\1\0\0\0\1\0\1\0", 12),          // frame over 64 KiB
      std::string("\1\0\0\0\2\0\0\0\xff\xff\xff\x7f", 12),  // credit nobody asked for
  };
  for (const std::string& attack : attacks) {
    int fds[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    UniqueFd peer(fds[1]);
    const auto mux = StdioMux::Create(UniqueFd(fds[0]), false);
    Pipe source;
    auto done = std::make_shared<std::promise<void>>();
    ASSERT_OK(mux->AttachSource(1, std::move(source.read), [done] { done->set_value(); }));
    ASSERT_EQ(write(peer.get(), attack.data(), attack.size()), static_cast<ssize_t>(attack.size()));
    done->get_future().get();  // runs when the channel is given up
    EXPECT_NOT_OK(mux->status());
  }
}

TEST(MuxPeer, ASenderOverItsWindowLosesTheChannel) {
  int fds[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  UniqueFd peer(fds[1]);
  const auto mux = StdioMux::Create(UniqueFd(fds[0]), false);
  std::string frame("\1\0\0\0\1\0\0\0\0\0\1\0", 12);
  frame.append(65536, 'x');
  std::thread flood([&] {
    for (int i = 0; i < 8; ++i) {
      std::string_view rest = frame;
      while (!rest.empty()) {
        const ssize_t n = send(peer.get(), rest.data(), rest.size(), MSG_NOSIGNAL);
        if (n <= 0) return;
        rest.remove_prefix(static_cast<size_t>(n));
      }
    }
  });
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (mux->status().ok() && std::chrono::steady_clock::now() < deadline) poll(nullptr, 0, 1);
  EXPECT_NOT_OK(mux->status());
  shutdown(peer.get(), SHUT_RDWR);
  flood.join();
}

}  // namespace
}  // namespace lamina::guest
