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
    a_ = StdioMux::Create(UniqueFd(fds[0]));
    b_ = StdioMux::Create(UniqueFd(fds[1]), {.early_bytes = kMaxEarlyBytes});
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
  const auto mux = StdioMux::Create(std::move(pty.port), {.persistent = true, .early_bytes = kMaxEarlyBytes});
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
    const auto mux = StdioMux::Create(UniqueFd(fds[0]), {.early_bytes = kMaxEarlyBytes});
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
  const auto mux = StdioMux::Create(UniqueFd(fds[0]), {.early_bytes = kMaxEarlyBytes});
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

// The guest's end, played by hand: it writes frames, and reads only when told to.
class RawPeer {
 public:
  explicit RawPeer(StdioMuxOptions options = {}) {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) abort();
    channel_.reset(fds[1]);
    mux = StdioMux::Create(UniqueFd(fds[0]), options);
  }
  static std::string Frame(uint32_t id, uint8_t kind, uint32_t length, std::string_view payload = {}) {
    std::string frame;
    for (int shift = 0; shift < 32; shift += 8) frame.push_back(static_cast<char>(id >> shift));
    frame.push_back(static_cast<char>(kind));
    frame.append(3, '\0');
    for (int shift = 0; shift < 32; shift += 8) frame.push_back(static_cast<char>(length >> shift));
    return frame.append(payload);
  }
  static std::string Data(uint32_t id, std::string_view payload) {
    return Frame(id, 1, static_cast<uint32_t>(payload.size()), payload);
  }
  // False once the channel is lost.
  bool Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = send(channel_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      most_buffered = std::max(most_buffered, mux->buffered_bytes());
      if (n > 0) {
        bytes.remove_prefix(static_cast<size_t>(n));
      } else if (!mux->status().ok()) {
        return false;
      } else {
        pollfd room{channel_.get(), POLLOUT, 0};
        poll(&room, 1, 10);
      }
    }
    return true;
  }
  struct Received {
    uint32_t id;
    uint8_t kind;
    uint32_t length;
  };
  // All that was sent before has been dealt with. Frames for others are dropped.
  void Barrier() {
    constexpr uint32_t kId = 0x7fffffff;
    if (!barrier_) AttachDrainedSink(kId);
    barrier_ = true;
    EXPECT_TRUE(Send(Data(kId, "x")));
    for (Received frame = Receive(); frame.kind != 0 && (frame.id != kId || frame.kind != 2);)
      frame = Receive();
  }
  // The next frame, its payload dropped.
  Received Receive() {
    unsigned char header[12];
    if (recv(channel_.get(), header, sizeof header, MSG_WAITALL) != sizeof header) return {0, 0, 0};
    const auto u32 = [&](int at) {
      return static_cast<uint32_t>(header[at] | header[at + 1] << 8 | header[at + 2] << 16 |
                                   header[at + 3] << 24);
    };
    Received frame{u32(0), header[4], u32(8)};
    std::string payload(frame.kind == 1 ? frame.length : 0, '\0');
    if (!payload.empty()) recv(channel_.get(), payload.data(), payload.size(), MSG_WAITALL);
    return frame;
  }
  // A sink whose other end is read by a thread for as long as it is open.
  void AttachDrainedSink(uint32_t id) {
    Pipe out;
    EXPECT_OK(mux->AttachSink(id, std::move(out.write), nullptr));
    drains_.push_back(std::async(std::launch::async, [end = std::move(out.read)] { ReadAll(end.get()); }));
  }
  void WaitUntilLost() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (mux->status().ok() && std::chrono::steady_clock::now() < deadline) poll(nullptr, 0, 1);
  }

  size_t most_buffered = 0;

 private:
  UniqueFd channel_;
  bool barrier_ = false;
  std::vector<std::future<void>> drains_;

 public:
  std::unique_ptr<StdioMux> mux;  // ends first: that ends the drains
};

constexpr size_t kChannelBytes = 1 << 20;  // what stdio_mux.h promises for the channel itself

TEST(MuxMemory, AMillionFramesOfOneByteFromAPeerThatNeverReadsCostNextToNothing) {
  RawPeer peer;
  peer.AttachDrainedSink(1);
  std::string frames;
  for (int i = 0; i < 100; ++i) frames += RawPeer::Data(1, "x");
  // Whether it loses the channel for it depends on how often the mux comes round, and so on how much credit
  // is told one by one.
  for (int i = 0; i < 10'000 && peer.Send(frames); ++i) {
  }
  EXPECT_LE(peer.most_buffered, kChannelBytes);
}

TEST(MuxMemory, CreditThatAPeerIsLateToReadComesWhole) {
  constexpr uint32_t kFrames = 200'000;
  RawPeer peer;
  peer.AttachDrainedSink(1);
  std::string frames;
  for (int i = 0; i < 100; ++i) frames += RawPeer::Data(1, "x");
  for (uint32_t i = 0; i < kFrames / 100; ++i) ASSERT_TRUE(peer.Send(frames));
  uint32_t granted = 0;
  while (granted < kFrames) {
    const RawPeer::Received frame = peer.Receive();
    ASSERT_EQ(frame.kind, 2);
    granted += frame.length;
  }
  EXPECT_EQ(granted, kFrames);
  EXPECT_OK(peer.mux->status());
  EXPECT_LE(peer.most_buffered, kChannelBytes);
}

TEST(MuxMemory, StreamsThatNobodyAttachedAreDropped) {
  RawPeer peer;
  const std::string payload(32 * 1024, 'x');
  for (uint32_t id = 1; id <= 2000; ++id) {
    ASSERT_TRUE(peer.Send(RawPeer::Data(id, payload)));
    ASSERT_TRUE(peer.Send(RawPeer::Frame(id, 3, 0)));
  }
  EXPECT_LE(peer.most_buffered, kChannelBytes);
  // What comes after the attach is not mistaken for the rest of what came before.
  Pipe out;
  ASSERT_OK(peer.mux->AttachSink(1, std::move(out.write), nullptr));
  ASSERT_TRUE(peer.Send(RawPeer::Data(1, "mine") + RawPeer::Frame(1, 3, 0)));
  EXPECT_EQ(ReadAll(out.read.get()), "mine");
}

TEST(MuxMemory, DataOnAStreamThatOnlySendsIsDropped) {
  RawPeer peer;
  std::vector<UniqueFd> ends;
  for (uint32_t id = 1; id <= 50; ++id) {
    Pipe in;
    ASSERT_OK(peer.mux->AttachSource(id, std::move(in.read), nullptr));
    ends.push_back(std::move(in.write));
    for (int i = 0; i < 4; ++i) ASSERT_TRUE(peer.Send(RawPeer::Data(id, std::string(60'000, 'x'))));
  }
  EXPECT_LE(peer.most_buffered, kChannelBytes);
}

TEST(MuxMemory, EarlyBytesAreCountedInAll) {
  RawPeer peer({.early_bytes = 100'000});
  ASSERT_TRUE(peer.Send(RawPeer::Data(1, std::string(60'000, 'a'))));
  peer.Barrier();
  // Closed: it counts no more, and neither does what is late for it.
  peer.mux->Close(1);
  ASSERT_TRUE(peer.Send(RawPeer::Data(1, std::string(60'000, 'b'))));
  ASSERT_TRUE(peer.Send(RawPeer::Data(2, std::string(60'000, 'c'))));
  peer.Barrier();
  Pipe out;
  ASSERT_OK(peer.mux->AttachSink(2, std::move(out.write), nullptr));
  std::string got(60'000, '\0');
  for (size_t n = 0; n < got.size();) {
    const ssize_t more = read(out.read.get(), got.data() + n, got.size() - n);
    ASSERT_GT(more, 0);
    n += static_cast<size_t>(more);
  }
  EXPECT_EQ(got, std::string(60'000, 'c'));
  // Attached, so it counts no more either.
  ASSERT_TRUE(peer.Send(RawPeer::Data(3, std::string(60'000, 'd'))));
  peer.Barrier();
  EXPECT_OK(peer.mux->status());
  peer.Send(RawPeer::Data(4, std::string(60'000, 'e')));
  peer.WaitUntilLost();
  EXPECT_THAT(peer.mux->status(), testing::HasStatus(absl::StatusCode::kUnavailable, "unknown streams"));
}

TEST(MuxMemory, ClosingStreamsOfAPeerThatNeverReadsCostsNextToNothing) {
  RawPeer peer;
  const Pipe in;
  for (uint32_t id = 1; id <= 100'000; ++id) {
    UniqueFd source(fcntl(in.read.get(), F_DUPFD_CLOEXEC, 3));
    ASSERT_OK(peer.mux->AttachSource(id, std::move(source), nullptr));
    peer.mux->Close(id);
  }
  EXPECT_LE(peer.mux->buffered_bytes(), kChannelBytes);
  EXPECT_OK(peer.mux->status());
}

TEST(MuxMemory, ABurstIsNotKeptFor) {
  RawPeer peer;
  for (uint32_t id = 1; id <= 20; ++id) peer.AttachDrainedSink(id);
  for (uint32_t id = 1; id <= 20; ++id) {
    for (int i = 0; i < 4; ++i) ASSERT_TRUE(peer.Send(RawPeer::Data(id, std::string(60'000, 'x'))));
  }
  // All of it has been written out once all of it has come back as credit.
  uint32_t granted = 0;
  while (granted < 20 * 4 * 60'000) granted += peer.Receive().length;
  EXPECT_LE(peer.mux->buffered_bytes(), 256u * 1024);
}

}  // namespace
}  // namespace lamina::guest
