#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <latch>
#include <thread>

#include "base/mutex.h"
#include "base/ttrpc/client.h"
#include "base/ttrpc/frame.h"
#include "base/ttrpc/server.h"
#include "base/unix_socket.h"
#include "proto/agent.pb.h"
#include "proto/ttrpc.pb.h"
#include "tests/testing/pty_port.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::ttrpc {
namespace {

using agent::v1::ProcessRequest;
using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasStatus;

// A gate that calls wait at until a test opens it.
class Gate {
 public:
  void Open() {
    MutexLock lock(mutex_);
    open_ = true;
    changed_.NotifyAll();
  }
  void Pass() {
    MutexLock lock(mutex_);
    ++waiting_;
    changed_.NotifyAll();
    while (!open_) changed_.Wait(mutex_);
  }
  void AwaitWaiters(int count) {
    MutexLock lock(mutex_);
    while (waiting_ < count) changed_.Wait(mutex_);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool open_ = false;
  int waiting_ = 0;
};

class Rpc : public ::testing::Test {
 protected:
  void SetUp() override {
    server_.Handle<ProcessRequest, ProcessRequest>(
        "s", "Echo",
        [](const CallContext&, const ProcessRequest& r) -> absl::StatusOr<ProcessRequest> { return r; });
    server_.Handle<ProcessRequest, ProcessRequest>(
        "s", "Wait", [this](const CallContext&, const ProcessRequest& r) -> absl::StatusOr<ProcessRequest> {
          gate_.Pass();
          return r;
        });
    server_.Handle<ProcessRequest, ProcessRequest>(
        "s", "Fail", [](const CallContext& c, const ProcessRequest&) -> absl::StatusOr<ProcessRequest> {
          return absl::NotFoundError("no " + c.ns);
        });
    server_.Handle<ProcessRequest, ProcessRequest>(
        "s", "Stop", [this](const CallContext& c, const ProcessRequest& r) -> absl::StatusOr<ProcessRequest> {
          *c.after_answer = [this] { server_.Stop(); };
          return r;
        });
    server_.Handle<ProcessRequest, ProcessRequest>(
        "s", "UntilGone",
        [this](const CallContext& c, const ProcessRequest& r) -> absl::StatusOr<ProcessRequest> {
          std::latch gone(1);
          const std::stop_callback on_gone(c.gone, [&] { gone.count_down(); });
          begun_.count_down();
          gone.wait();
          ended_.count_down();
          return r;
        });
    server_.Register("s", "Huge", [](const CallContext&, std::string_view) -> absl::StatusOr<std::string> {
      return std::string(kMaxPayloadBytes + 1, 'x');
    });
    ASSERT_OK(server_.Listen(path_));
    auto client = Client::Dial(path_, "peer");
    ASSERT_OK(client);
    client_ = std::move(*client);
  }
  void TearDown() override { gate_.Open(); }

  absl::Status Call(const std::string& method, const std::string& text, std::string* out = nullptr,
                    std::chrono::nanoseconds timeout = seconds(30)) {
    ProcessRequest request, response;
    request.set_container_id(text);
    const absl::Status status =
        client_->Call("s", method, request, &response, timeout, {{"containerd-namespace-ttrpc", "k8s.io"}});
    if (out != nullptr) *out = response.container_id();
    return status;
  }

  testing::TempDir dir_;
  std::string path_ = dir_ / "s.sock";
  Gate gate_;
  std::latch begun_{1}, ended_{1};  // of UntilGone
  Server server_;
  std::unique_ptr<Client> client_;
};

TEST_F(Rpc, CancelledCallsFailAndLaterOnesAreMade) {
  auto waiting = std::async(std::launch::async, [this] { return Call("Wait", "x"); });
  gate_.AwaitWaiters(1);
  client_->CancelCalls();
  EXPECT_THAT(waiting.get(), HasStatus(absl::StatusCode::kCancelled, "peer"));
  ASSERT_OK(Call("Echo", "y"));
}

TEST_F(Rpc, ARequestThatCameBeforeItsPeerIsAnswered) {
  testing::PtyPort pty;
  {
    const UniqueFd early = pty.OpenPeer();
    Request request;
    request.set_service("s");
    request.set_method("Echo");
    Frame frame;
    frame.stream_id = 1;
    frame.payload = request.SerializeAsString();
    const std::string bytes = *EncodeFrame(frame);
    ASSERT_EQ(write(early.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  }
  const int port = pty.port.get();
  ASSERT_EQ(testing::PtyPort::Events(port), POLLIN | POLLHUP);
  ASSERT_OK(server_.ServeFd(std::move(pty.port), true));
  // The server has looked at the port by the time that it answers another caller.
  ASSERT_OK(Call("Echo", "x"));
  EXPECT_EQ(testing::PtyPort::Events(port), POLLIN | POLLHUP) << "it is not read before its peer is there";

  const UniqueFd peer = pty.OpenPeer();
  EXPECT_EQ(testing::PtyPort::Events(peer.get()), POLLIN) << "no answer";
}

TEST_F(Rpc, AnswersAndErrors) {
  std::string out;
  EXPECT_OK(Call("Echo", "hello", &out));
  EXPECT_EQ(out, "hello");
  EXPECT_THAT(Call("Fail", ""), HasStatus(absl::StatusCode::kNotFound, "no k8s.io"));
  EXPECT_THAT(Call("None", ""), HasStatus(absl::StatusCode::kUnimplemented, "None"));
  ProcessRequest request;
  EXPECT_THAT(client_->Call("other", "Echo", request, nullptr, seconds(30)),
              HasStatus(absl::StatusCode::kUnimplemented, "other"));
  EXPECT_THAT(Call("Huge", ""), HasStatus(absl::StatusCode::kResourceExhausted, "limit"));
  EXPECT_THAT(Call("Echo", std::string(kMaxPayloadBytes, 'x')),
              HasStatus(absl::StatusCode::kResourceExhausted, "limit"));
  struct stat info {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(Rpc, AWaitingCallDelaysNoOther) {
  std::vector<std::future<absl::Status>> waits;
  for (int i = 0; i < 20; ++i)
    waits.push_back(std::async(std::launch::async, [&] { return Call("Wait", "w", nullptr, kNoTimeout); }));
  gate_.AwaitWaiters(20);
  std::string out;
  EXPECT_OK(Call("Echo", "between", &out));
  EXPECT_EQ(out, "between");
  gate_.Open();
  for (auto& wait : waits) EXPECT_OK(wait.get());
}

TEST_F(Rpc, DeadlineEndsTheCallAndTheConnectionGoesOn) {
  EXPECT_THAT(Call("Wait", "", nullptr, milliseconds(50)),
              HasStatus(absl::StatusCode::kDeadlineExceeded, "Wait"));
  gate_.Open();
  EXPECT_OK(Call("Echo", "x"));
}

TEST_F(Rpc, ManyCallersOneConnection) {
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const std::string text =
            std::to_string(t * 1000 + i) + std::string(static_cast<size_t>(i) * 100, 'x');
        std::string out;
        if (Call("Echo", text, &out).ok() && out == text) ++good;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good, 16 * 50);
}

TEST_F(Rpc, StoppingTheServerFailsCalls) {
  auto wait = std::async(std::launch::async, [&] { return Call("Wait", "", nullptr, kNoTimeout); });
  gate_.AwaitWaiters(1);
  server_.Stop();
  EXPECT_THAT(wait.get(), HasStatus(absl::StatusCode::kUnavailable, "peer"));
  EXPECT_FALSE(client_->connected());
  EXPECT_THAT(Call("Echo", ""), HasStatus(absl::StatusCode::kUnavailable, "peer"));
}

TEST_F(Rpc, ACallHearsThatItsConnectionIsClosed) {
  auto call = std::async(std::launch::async, [&] { return Call("UntilGone", "", nullptr, kNoTimeout); });
  begun_.wait();
  client_.reset();
  ended_.wait();
  EXPECT_NOT_OK(call.get());
}

TEST_F(Rpc, ACallHearsThatTheServerStops) {
  auto call = std::async(std::launch::async, [&] { return Call("UntilGone", "", nullptr, kNoTimeout); });
  begun_.wait();
  server_.Stop();
  ended_.wait();
  EXPECT_NOT_OK(call.get());
}

TEST_F(Rpc, WhatMustNotOutrunTheAnswerComesAfterIt) {
  std::string out;
  EXPECT_OK(Call("Stop", "the last words", &out));
  EXPECT_EQ(out, "the last words");
  server_.Wait();
  EXPECT_NOT_OK(Call("Echo", ""));
}

TEST_F(Rpc, DestroyingTheClientFailsItsCalls) {
  auto other = std::move(*Client::Dial(path_, "other"));
  Client* raw = other.get();
  auto wait = std::async(std::launch::async, [raw] {
    ProcessRequest request;
    return raw->Call("s", "Wait", request, nullptr, kNoTimeout);
  });
  gate_.AwaitWaiters(1);
  server_.Stop();  // ends the call before the client goes
  EXPECT_NOT_OK(wait.get());
}

TEST_F(Rpc, GarbageClosesOnlyItsConnection) {
  const absl::StatusOr<UniqueFd> peer = ConnectUnix(path_);
  ASSERT_OK(peer);
  const UniqueFd& fd = *peer;
  ASSERT_GT(send(fd.get(), "this is no frame at all", 23, MSG_NOSIGNAL), 0);
  char byte;
  EXPECT_EQ(read(fd.get(), &byte, 1), 0);  // closed
  EXPECT_OK(Call("Echo", "still here"));
}

TEST_F(Rpc, APeerThatNeverReadsStallsNobody) {
  const absl::StatusOr<UniqueFd> peer = ConnectUnix(path_);
  ASSERT_OK(peer);
  const UniqueFd& fd = *peer;
  Frame frame;
  frame.stream_id = 1;
  frame.payload = std::string(
      "\x0a\x01s\x12\x04"
      "Huge",
      9);
  for (int i = 0; i < 50; ++i) {
    const std::string bytes = *EncodeFrame(frame);
    if (send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0) break;
    EXPECT_OK(Call("Echo", "x"));
  }
}

TEST(Client, NobodyThere) {
  EXPECT_THAT(Client::Dial("/nonexistent/x.sock", "laminad").status(),
              HasStatus(absl::StatusCode::kUnavailable, "/nonexistent/x.sock"));
  EXPECT_THAT(Client::Dial(std::string(200, 'x'), "laminad").status(),
              HasStatus(absl::StatusCode::kInvalidArgument, "200 bytes"));
}

TEST(Client, GarbageFromThePeerEndsTheConnection) {
  int fds[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  UniqueFd peer(fds[1]);
  const auto client = Client::FromFd(UniqueFd(fds[0]), "guest");
  ASSERT_GT(write(peer.get(), "\0\0\0\0\0\0\0\1\xff\0", 10), 0);
  ProcessRequest request;
  EXPECT_THAT(client->Call("s", "m", request, nullptr, seconds(10)),
              HasStatus(absl::StatusCode::kUnavailable, "guest"));
}

TEST(Client, APeerThatDoesNotReadHoldsTheCallerAtMostUntilTheDeadline) {
  int fds[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  UniqueFd peer(fds[1]);
  const auto client = Client::FromFd(UniqueFd(fds[0]), "guest");
  ProcessRequest request;
  request.set_container_id(std::string(3 << 20, 'x'));
  EXPECT_THAT(client->Call("s", "m", request, nullptr, milliseconds(100)),
              HasStatus(absl::StatusCode::kDeadlineExceeded, "guest"));
}

}  // namespace
}  // namespace lamina::ttrpc
