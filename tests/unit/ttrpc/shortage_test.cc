// What a server and a client do when there are no threads or no descriptors to be had, and of errors that are
// too long.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/ttrpc/client.h"
#include "base/ttrpc/frame.h"
#include "base/ttrpc/server.h"
#include "base/ttrpc/thread.h"
#include "base/unix_socket.h"
#include "proto/agent.pb.h"
#include "proto/ttrpc.pb.h"
#include "tests/testing/no_threads.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::ttrpc {
namespace {

using agent::v1::ProcessRequest;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using testing::HasStatus;
using testing::NoThreads;

class Shortage : public ::testing::Test {
 protected:
  static ServerOptions OneIdleThread() {
    ServerOptions options;
    options.idle_threads = 1;
    return options;
  }

  void SetUp() override {
    server_.Handle<ProcessRequest, ProcessRequest>(
        "s", "Echo",
        [](const CallContext&, const ProcessRequest& r) -> absl::StatusOr<ProcessRequest> { return r; });
    server_.Handle<ProcessRequest, ProcessRequest>(
        "s", "Wait", [this](const CallContext&, const ProcessRequest& r) -> absl::StatusOr<ProcessRequest> {
          waiting_.set_value();
          open_.get_future().wait();
          return r;
        });
    server_.Handle<ProcessRequest, ProcessRequest>(
        "s", "Fail", [this](const CallContext&, const ProcessRequest&) -> absl::StatusOr<ProcessRequest> {
          return absl::NotFoundError(error_);
        });
  }

  void Serve() {
    ASSERT_OK(server_.Listen(path_));
    auto client = Client::Dial(path_, "peer");
    ASSERT_OK(client);
    client_ = std::move(*client);
  }

  static absl::Status Call(Client& client, const char* method) {
    ProcessRequest request;
    return client.Call("s", method, request, nullptr, seconds(30));
  }

  testing::TempDir dir_;
  const std::string path_ = dir_ / "s.sock";
  std::promise<void> waiting_, open_;
  std::string error_;
  Server server_{OneIdleThread()};
  std::unique_ptr<Client> client_;
};

TEST_F(Shortage, ACallThatGetsNoThreadIsAnsweredWhileOthersAreBusy) {
  Serve();
  auto wait = std::async(std::launch::async, [this] { return Call(*client_, "Wait"); });
  waiting_.get_future().wait();
  {
    const NoThreads none;
    EXPECT_THAT(Call(*client_, "Echo"), HasStatus(absl::StatusCode::kResourceExhausted, "thread"));
    EXPECT_GT(none.refused(), 0);
  }
  EXPECT_OK(Call(*client_, "Echo"));
  open_.set_value();
  EXPECT_OK(wait.get());
}

TEST_F(Shortage, AServerWithoutItsThreadServesNothingAndSaysSo) {
  {
    const NoThreads none;
    EXPECT_THAT(server_.Listen(path_), HasStatus(absl::StatusCode::kResourceExhausted, "thread"));
    EXPECT_FALSE(SomebodyListens(path_)) << "who connects would wait for ever";
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    const UniqueFd ours(ends[0]);
    EXPECT_THAT(server_.ServeFd(UniqueFd(ends[1]), false),
                HasStatus(absl::StatusCode::kResourceExhausted, "thread"));
    char byte;
    EXPECT_EQ(recv(ours.get(), &byte, 1, MSG_DONTWAIT), 0) << "closed";
  }
  Serve();
  EXPECT_OK(Call(*client_, "Echo"));
}

TEST_F(Shortage, AClientWithoutItsReaderIsAFailedDial) {
  Serve();
  const NoThreads none;
  EXPECT_THAT(Client::Dial(path_, "laminad").status(),
              HasStatus(absl::StatusCode::kResourceExhausted, "laminad: start a thread"));
  absl::StatusOr<UniqueFd> fd = ConnectUnix(path_);
  ASSERT_OK(fd);
  const auto client = Client::FromFd(std::move(*fd), "agent");
  EXPECT_FALSE(client->connected());
  EXPECT_THAT(Call(*client, "Echo"),
              HasStatus(absl::StatusCode::kResourceExhausted, "agent: start a thread"));
}

TEST(Threads, ThatCannotBeMadeAreAnErrorNotAnException) {
  bool ran = false;
  {
    const NoThreads none;
    EXPECT_THAT(NewThread([&ran] { ran = true; }).status(),
                HasStatus(absl::StatusCode::kResourceExhausted, "start a thread: Resource temporarily"));
    EXPECT_THAT(StartThread(64 * 1024, [] {}),
                HasStatus(absl::StatusCode::kResourceExhausted, "start a thread"));
    EXPECT_EQ(none.refused(), 2);
  }
  absl::StatusOr<std::thread> thread = NewThread([&ran] { ran = true; });
  ASSERT_OK(thread);
  thread->join();
  EXPECT_TRUE(ran);
}

double CpuSeconds() {
  timespec used{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) / 1e9;
}

TEST_F(Shortage, WithoutDescriptorsNobodyIsAcceptedAndNothingSpins) {
  Serve();
  EXPECT_OK(Call(*client_, "Echo"));  // leaves a thread for the next
  UniqueFd late(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path_.copy(address.sun_path, path_.size());
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
  const rlimit few{64, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  std::vector<UniqueFd> taken;
  for (int fd = dup(0); fd >= 0; fd = dup(0)) taken.emplace_back(fd);
  EXPECT_EQ(connect(late.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);

  const double before = CpuSeconds();
  const auto begin = steady_clock::now();
  int calls = 0;
  for (; steady_clock::now() - begin < milliseconds(500); ++calls) {
    EXPECT_OK(Call(*client_, "Echo"));
    poll(nullptr, 0, 50);  // idle, but for what spins
  }
  const double used = CpuSeconds() - before,
               wall = std::chrono::duration<double>(steady_clock::now() - begin).count();
  EXPECT_LT(used, 0.1 * wall) << "of one CPU, with " << calls << " calls";

  taken.clear();
  setrlimit(RLIMIT_NOFILE, &old);
  const auto client = Client::FromFd(std::move(late), "late");
  EXPECT_OK(Call(*client, "Echo")) << "who waited is taken once it can be done";
}

TEST_F(Shortage, APeersErrorIsCutAndEscaped) {
  Serve();
  error_.assign(3 << 20, 'x');
  error_.push_back('\n');
  const absl::Status huge = Call(*client_, "Fail");
  EXPECT_THAT(huge, HasStatus(absl::StatusCode::kNotFound, "xxx..."));
  EXPECT_EQ(huge.message().size(), 4096U);
  error_ = "no such\nfile \x1b[2J";
  const absl::Status odd = Call(*client_, "Fail");
  EXPECT_EQ(odd.message(), "no such\\nfile \\x1b[2J");
}

// containerd, which shows it to whoever asks, could not read a message that is no UTF-8.
TEST_F(Shortage, AnErrorIsSentCutAndEscaped) {
  Serve();
  Request request;
  request.set_service("s");
  request.set_method("Fail");
  Frame frame;
  frame.stream_id = 1;
  frame.type = FrameType::kRequest;
  ASSERT_TRUE(request.SerializeToString(&frame.payload));
  const absl::StatusOr<std::string> bytes = EncodeFrame(frame);
  ASSERT_OK(bytes);
  for (const auto& [said, wanted] :
       {std::pair<std::string, std::string>{"a\x1b[2J\xff\xfe\n\xc3\xa4", "a\\x1b[2J\\xff\\xfe\\n\\xc3\\xa4"},
        {std::string(1 << 20, 'x'), std::string(4093, 'x') + "..."}}) {
    error_ = said;
    const absl::StatusOr<UniqueFd> fd = ConnectUnix(path_);
    ASSERT_OK(fd);
    ASSERT_EQ(write(fd->get(), bytes->data(), bytes->size()), static_cast<ssize_t>(bytes->size()));
    FrameReader reader;
    Frame answer;
    char buffer[8192];
    for (absl::StatusOr<bool> whole = false; !*whole; whole = reader.Next(answer)) {
      const ssize_t n = read(fd->get(), buffer, sizeof buffer);
      ASSERT_GT(n, 0);
      reader.Feed({buffer, static_cast<size_t>(n)});
    }
    Response response;
    ASSERT_TRUE(response.ParseFromString(answer.payload));
    EXPECT_EQ(response.status().message(), wanted);
  }
}

}  // namespace
}  // namespace lamina::ttrpc
