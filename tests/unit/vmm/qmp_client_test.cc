#include "vmm/qmp_client.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::vmm {
namespace {

using lamina::testing::HasStatus;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using ::testing::HasSubstr;

constexpr char kGreeting[] =
    R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}})"
    "\r\n";

// QEMU's side of a socket pair. Commands come as lines; ids are 1, 2, … in the order of sending.
class FakeQemu {
 public:
  FakeQemu() {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) abort();
    ours_ = UniqueFd(fds[0]);
    theirs_ = UniqueFd(fds[1]);
  }
  void Say(const std::string& text) {
    ASSERT_EQ(send(ours_.get(), text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
  }
  void SayUntilGone(const std::string& text) {
    while (send(ours_.get(), text.data(), text.size(), MSG_NOSIGNAL) > 0) {
    }
  }
  // Until the client must read before more can come. Gives how many bytes wait for it.
  size_t SayAsMuchAsFits(const std::string& text) {
    const int room = 1 << 20;
    EXPECT_EQ(setsockopt(ours_.get(), SOL_SOCKET, SO_SNDBUF, &room, sizeof room), 0);
    size_t sent = 0;
    for (ssize_t n; (n = send(ours_.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT)) > 0;)
      sent += static_cast<size_t>(n);
    return sent;
  }
  std::string NextCommand() {
    std::string line;
    char c;
    while (read(ours_.get(), &c, 1) == 1 && c != '\n') line.push_back(c);
    return line;
  }
  void End() { ours_.reset(); }
  UniqueFd TakeClientEnd() { return std::move(theirs_); }

  // A client that has negotiated; command ids go on from 2.
  std::unique_ptr<QmpClient> Negotiate() {
    Say(kGreeting);
    Say("{\"return\": {}, \"id\": 1}\r\n");
    auto client = QmpClient::FromFd(TakeClientEnd(), steady_clock::now() + seconds(5));
    EXPECT_OK(client);
    EXPECT_EQ(NextCommand(), R"({"execute":"qmp_capabilities","id":1})");
    return client.ok() ? *std::move(client) : nullptr;
  }

 private:
  UniqueFd ours_, theirs_;
};

TEST(ParseQmpLineTest, Kinds) {
  auto message = ParseQmpLine(kGreeting);
  ASSERT_OK(message);
  EXPECT_EQ(message->kind, QmpMessage::kGreeting);

  message = ParseQmpLine(R"({"return": {"running": true, "n": 18446744073709551615}, "id": 7})");
  ASSERT_OK(message);
  EXPECT_EQ(message->kind, QmpMessage::kReturn);
  EXPECT_EQ(message->id, 7u);
  EXPECT_EQ(message->return_json, R"({"n":18446744073709551615,"running":true})");

  message =
      ParseQmpLine(R"({"id": 8, "error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}})");
  ASSERT_OK(message);
  EXPECT_EQ(message->kind, QmpMessage::kError);
  EXPECT_EQ(message->error_class, "DeviceNotFound");
  EXPECT_EQ(message->error_text, "Device 'x' not found");

  message = ParseQmpLine(
      R"({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "DEVICE_DELETED", "data": {"device": "disk-0-1", "path": "/machine/peripheral/disk-0-1"}})");
  ASSERT_OK(message);
  EXPECT_EQ(message->kind, QmpMessage::kEvent);
  EXPECT_EQ(message->event.name, "DEVICE_DELETED");
  EXPECT_EQ(message->event.device, "disk-0-1");
}

TEST(ParseQmpLineTest, RefusesWhatIsNotQmp) {
  for (const char* line : {"", "\r", "hello", "[]", "{}", "1", "null", R"({"id": 1})", R"({"return")",
                           R"({"error": "text"})", R"({"return": {}} trailing)", "{\"return\": \"\xff\"}"}) {
    EXPECT_THAT(ParseQmpLine(line), HasStatus(absl::StatusCode::kInvalidArgument, "QMP")) << line;
  }
}

TEST(ParseQmpLineTest, OddFieldsAreNotTrusted) {
  auto message = ParseQmpLine(R"({"return": 1, "id": -5})");
  ASSERT_OK(message);
  EXPECT_EQ(message->id, 0u);  // no command has this id
  message = ParseQmpLine(R"({"event": 3, "data": {"device": ["x"]}})");
  ASSERT_OK(message);
  EXPECT_EQ(message->event.name, "");
  EXPECT_EQ(message->event.device, "");
}

// The shim's threads have small stacks.
TEST(ParseQmpLineTest, DeepNestingIsRefusedNotRecursedInto) {
  const size_t depth = 100'000;
  const std::string deep = "{\"return\":" + std::string(depth, '[') + std::string(depth, ']') + "}";
  ASSERT_LT(deep.size(), kQmpMaxLineBytes);
  EXPECT_THAT(ParseQmpLine(deep), HasStatus(absl::StatusCode::kInvalidArgument, "nested deeper"));
  EXPECT_OK(ParseQmpLine("{\"return\":" + std::string(60, '[') + std::string(60, ']') + "}"));
}

TEST(QmpClientTest, SendsArgumentsAndGivesTheReturn) {
  FakeQemu qemu;
  const auto client = qemu.Negotiate();
  ASSERT_NE(client, nullptr);
  qemu.Say("{\"return\": [{\"pid\": 3}], \"id\": 2}\r\n");
  const auto answer = client->Execute("object-del", R"({"id":"mem-a"})", seconds(5));
  ASSERT_OK(answer);
  EXPECT_EQ(*answer, R"([{"pid":3}])");
  EXPECT_EQ(qemu.NextCommand(), R"({"execute":"object-del","arguments":{"id":"mem-a"},"id":2})");
}

TEST(QmpClientTest, ErrorsCarryQemusWords) {
  FakeQemu qemu;
  const auto client = qemu.Negotiate();
  qemu.Say(R"({"id": 2, "error": {"class": "GenericError", "desc": "Bus 'port9' not found"}})"
           "\n");
  EXPECT_THAT(client->Execute("device_add", "{}", seconds(5)),
              HasStatus(absl::StatusCode::kInternal, "QEMU refused device_add: Bus 'port9' not found"));
  qemu.Say(R"({"id": 3, "error": {"class": "DeviceNotFound", "desc": "Device 'd' not found"}})"
           "\n");
  EXPECT_THAT(client->Execute("device_del", "{}", seconds(5)),
              HasStatus(absl::StatusCode::kNotFound, "Device 'd' not found"));
}

TEST(QmpClientTest, EventsAndOthersAnswersBeforeOursAreNoAnswer) {
  FakeQemu qemu;
  const auto client = qemu.Negotiate();
  qemu.Say("{\"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 0}}\n{\"return\": \"old\", \"id\": 1}\n");
  qemu.Say("{\"error\": {\"class\": \"GenericError\", \"desc\": \"without id\"}}\n");
  qemu.Say("{\"return\": \"ours\", \"id\": 2}\n");
  EXPECT_EQ(client->Execute("x", "", seconds(5)).value_or("none"), "\"ours\"");
}

TEST(QmpClientTest, ALineInPiecesIsOneLine) {
  FakeQemu qemu;
  const auto client = qemu.Negotiate();
  std::thread server([&] {
    qemu.NextCommand();
    for (const char c : std::string("{\"return\": {}, \"id\": 2}\r\n")) qemu.Say(std::string(1, c));
  });
  EXPECT_OK(client->Execute("x", "", seconds(5)));
  server.join();
}

TEST(QmpClientTest, ALateAnswerIsDroppedAndTheNextCommandGetsItsOwn) {
  FakeQemu qemu;
  const auto client = qemu.Negotiate();
  EXPECT_THAT(client->Execute("slow", "", milliseconds(20)),
              HasStatus(absl::StatusCode::kDeadlineExceeded, "no answer"));
  qemu.Say("{\"return\": \"late\", \"id\": 2}\n{\"return\": \"right\", \"id\": 3}\n");
  EXPECT_EQ(client->Execute("next", "", seconds(5)).value_or("none"), "\"right\"");
}

TEST(QmpClientTest, AFloodOfEventsDoesNotHoldTheCallerPastItsDeadline) {
  FakeQemu qemu;
  auto client = qemu.Negotiate();
  std::string many;
  for (int i = 0; i < 1000; ++i) many += "{\"event\": \"NOISE\"}\n";
  std::thread server([&] { qemu.SayUntilGone(many); });
  EXPECT_THAT(client->Execute("x", "", milliseconds(100)),
              HasStatus(absl::StatusCode::kDeadlineExceeded, "x"));
  EXPECT_THAT(client->WaitDeviceDeleted("d", milliseconds(100)),
              HasStatus(absl::StatusCode::kDeadlineExceeded, "removed d"));
  client.reset();
  server.join();
}

TEST(QmpClientTest, GarbageAndOverlongLinesAreErrors) {
  FakeQemu qemu;
  auto client = qemu.Negotiate();
  qemu.Say("who is there?\n");
  EXPECT_THAT(client->Execute("x", "", seconds(5)),
              HasStatus(absl::StatusCode::kInvalidArgument, "who is there?"));
  std::thread server([&] { qemu.SayUntilGone(std::string(64 * 1024, 'x')); });
  EXPECT_THAT(client->Execute("y", "", seconds(30)),
              HasStatus(absl::StatusCode::kInternal, "longer than 256 KiB"));
  client.reset();  // it reads no further: what waits to be sent never leaves
  server.join();
}

TEST(QmpClientTest, AQemuThatEndsFailsTheCommandUnderWayAndTheNext) {
  FakeQemu qemu;
  const auto client = qemu.Negotiate();
  std::thread server([&] {
    qemu.NextCommand();
    qemu.End();
  });
  EXPECT_THAT(client->Execute("x", "", seconds(5)),
              HasStatus(absl::StatusCode::kUnavailable, "QEMU is gone"));
  server.join();
  EXPECT_THAT(client->Execute("y", "", seconds(5)),
              HasStatus(absl::StatusCode::kUnavailable, "QEMU is gone"));
}

TEST(QmpClientTest, AQemuThatReadsNothingHoldsTheCallerOnlyUntilTheDeadline) {
  FakeQemu qemu;
  const auto client = qemu.Negotiate();
  const std::string large = "{\"x\":\"" + std::string(8 << 20, 'x') + "\"}";
  EXPECT_THAT(client->Execute("x", large, milliseconds(50)),
              HasStatus(absl::StatusCode::kDeadlineExceeded, "does not take commands"));
  // Half a command is out: what followed would be read as its rest.
  EXPECT_THAT(client->Execute("y", "", seconds(5)), HasStatus(absl::StatusCode::kUnavailable, "gone"));
}

TEST(QmpClientTest, AGreetingIsNeeded) {
  FakeQemu qemu;
  qemu.Say("{\"return\": {}}\n");
  EXPECT_THAT(QmpClient::FromFd(qemu.TakeClientEnd(), steady_clock::now() + seconds(5)),
              HasStatus(absl::StatusCode::kInternal, "did not greet"));
  FakeQemu silent;
  EXPECT_THAT(QmpClient::FromFd(silent.TakeClientEnd(), steady_clock::now() + milliseconds(20)),
              HasStatus(absl::StatusCode::kDeadlineExceeded, "no answer"));
}

TEST(QmpClientTest, DeletionIsRememberedWhenItComesBeforeTheQuestion) {
  FakeQemu qemu;
  const auto client = qemu.Negotiate();
  qemu.Say(
      "{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"disk-0-1\"}}\n{\"return\": {}, \"id\": 2}\n");
  ASSERT_OK(client->Execute("device_del", "{}", seconds(5)));
  // Another's deletion is not this one's.
  EXPECT_THAT(client->WaitDeviceDeleted("disk-0-2", milliseconds(20)),
              HasStatus(absl::StatusCode::kDeadlineExceeded, ""));
  EXPECT_OK(client->WaitDeviceDeleted("disk-0-1", seconds(5)));
  // It answers once.
  EXPECT_THAT(client->WaitDeviceDeleted("disk-0-1", milliseconds(20)),
              HasStatus(absl::StatusCode::kDeadlineExceeded, ""));
}

TEST(QmpClientTest, AnOldDeletionDoesNotAnswerForANewDeviceOfTheSameName) {
  FakeQemu qemu;
  const auto client = qemu.Negotiate();
  qemu.Say(
      "{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"disk-0-0\"}}\n{\"return\": {}, \"id\": 2}\n");
  ASSERT_OK(client->Execute("x", "", seconds(5)));
  client->ForgetDeleted("disk-0-0");
  EXPECT_THAT(client->WaitDeviceDeleted("disk-0-0", milliseconds(20)),
              HasStatus(absl::StatusCode::kDeadlineExceeded, ""));
}

TEST(QmpClientTest, CommandsOfManyThreadsGetTheirOwnAnswers) {
  FakeQemu qemu;
  const auto client = qemu.Negotiate();
  constexpr int kThreads = 4, kCommands = 100;
  std::thread server([&] {
    for (int i = 0; i < kThreads * kCommands; ++i) {
      const std::string line = qemu.NextCommand();
      const std::string name = line.substr(12, line.find('"', 12) - 12);
      const std::string id = line.substr(line.rfind(':') + 1);
      qemu.Say("{\"return\": \"" + name + "\", \"id\": " + id + "\n");
    }
  });
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int t = 0; t < kThreads; ++t) {
    callers.emplace_back([&, t] {
      for (int i = 0; i < kCommands; ++i) {
        const std::string name = "c" + std::to_string(t) + "-" + std::to_string(i);
        const auto answer = client->Execute(name, "", seconds(20));
        if (!answer.ok() || *answer != "\"" + name + "\"") ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  server.join();
  EXPECT_EQ(wrong, 0);
}

TEST(QmpConnectTest, EndsWhenTheProcessHasEnded) {
  const lamina::testing::TempDir dir;
  int asked = 0;
  EXPECT_THAT(QmpClient::Connect(
                  dir / "qmp.sock", steady_clock::now() + seconds(20),
                  [&] { return ++asked < 3 ? absl::OkStatus() : absl::UnavailableError("it has ended"); }),
              HasStatus(absl::StatusCode::kUnavailable, "it has ended"));
  EXPECT_EQ(asked, 3);
}

TEST(QmpConnectTest, HasADeadlineAndALimitOfThePath) {
  const lamina::testing::TempDir dir;
  const auto alive = [] { return absl::OkStatus(); };
  EXPECT_THAT(QmpClient::Connect(dir / "qmp.sock", steady_clock::now() + milliseconds(30), alive),
              HasStatus(absl::StatusCode::kDeadlineExceeded, "did not open"));
  EXPECT_THAT(QmpClient::Connect(dir / std::string(120, 'x'), steady_clock::now() + seconds(1), alive),
              HasStatus(absl::StatusCode::kInvalidArgument, "longer than 107"));
}

TEST(QmpClientTest, BytesWithoutAnEndDoNotHoldTheCallerPastHisDeadline) {
  FakeQemu qemu;
  const auto client = qemu.Negotiate();
  ASSERT_GT(qemu.SayAsMuchAsFits(std::string(32 << 10, 'x')), kQmpMaxLineBytes + (8 << 10));
  // All of it could be read at once: "longer than 256 KiB" would mean that it was, past the deadline.
  EXPECT_THAT(client->Execute("x", "", milliseconds(0)),
              HasStatus(absl::StatusCode::kDeadlineExceeded, "no answer"));
}

// Of a flood nothing is kept but short names of deleted devices, and of those not many.
TEST(QmpClientTest, EventsDoNotFillTheMemory) {
  FakeQemu qemu;
  const auto client = qemu.Negotiate();
  const std::string large =
      "{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"" + std::string(200 << 10, 'd') + "\"}}\n";
  std::thread server([&] {
    for (int i = 0; i < 1000; ++i) qemu.Say(i % 2 == 0 ? large : "{\"event\": \"DEVICE_DELETED\"}\n");
    qemu.Say("{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"disk-0-1\"}}\n");
    qemu.Say("{\"return\": {}, \"id\": 2}\n");
  });
  const size_t before = mallinfo2().uordblks;
  EXPECT_OK(client->Execute("x", "", seconds(60)));
  server.join();
  EXPECT_LT(mallinfo2().uordblks, before + (2 << 20));
  EXPECT_OK(client->WaitDeviceDeleted("disk-0-1", seconds(5)));
}

TEST(QmpClientTest, AnErrorsTextIsShortAndPrintable) {
  FakeQemu qemu;
  const auto client = qemu.Negotiate();
  qemu.Say("{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"\\u001b[2J\\u00e4" +
           std::string(100'000, 'e') + "\"}}\n");
  const absl::Status status = client->Execute("x", "", seconds(5)).status();
  EXPECT_THAT(status, HasStatus(absl::StatusCode::kInternal, "QEMU refused x: \\x1b[2J\\xc3\\xa4eeee"));
  EXPECT_LT(status.message().size(), 600u);
}

TEST(QmpClientTest, WhoWaitsForHisTurnIsHeldOnlyUntilHisDeadline) {
  FakeQemu qemu;
  const auto client = qemu.Negotiate();
  std::thread first([&] { EXPECT_OK(client->Execute("slow", "", seconds(60))); });
  EXPECT_THAT(qemu.NextCommand(), HasSubstr("slow"));
  EXPECT_THAT(client->Execute("x", "", milliseconds(20)),
              HasStatus(absl::StatusCode::kDeadlineExceeded, "x was not sent in time"));
  qemu.Say("{\"return\": {}, \"id\": 2}\n");
  first.join();
}

TEST(QmpClientTest, CommandsGoOnWhileSomebodyWaitsForADeletion) {
  FakeQemu qemu;
  const auto client = qemu.Negotiate();
  std::thread waiter([&] { EXPECT_OK(client->WaitDeviceDeleted("disk-0-1", seconds(60))); });
  std::thread server([&] {
    for (int id = 2; id < 22; ++id) {
      EXPECT_THAT(qemu.NextCommand(), HasSubstr("\"x\""));
      if (id == 12) qemu.Say("{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"disk-0-1\"}}\n");
      qemu.Say("{\"return\": " + std::to_string(id) + ", \"id\": " + std::to_string(id) + "}\n");
    }
  });
  for (int id = 2; id < 22; ++id)
    EXPECT_EQ(client->Execute("x", "", seconds(30)).value_or("none"), std::to_string(id));
  server.join();
  waiter.join();
}

TEST(QmpClientTest, ConnectingIsGivenUp) {
  FakeQemu silent;
  const UniqueFd cancel(eventfd(1, EFD_CLOEXEC));
  EXPECT_THAT(QmpClient::FromFd(silent.TakeClientEnd(), steady_clock::now() + seconds(60), cancel.get()),
              HasStatus(absl::StatusCode::kCancelled, "given up"));
  EXPECT_THAT(QmpClient::Connect(
                  "/nowhere/qmp.sock", steady_clock::now() + seconds(60), [] { return absl::OkStatus(); },
                  cancel.get()),
              HasStatus(absl::StatusCode::kCancelled, "given up"));
}

TEST(QmpClientTest, ADescriptorGoesWithItsCommandAndWithNoOther) {
  int fds[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  const UniqueFd qemu(fds[0]);
  const std::string said =
      std::string(kGreeting) +
      "{\"return\": {}, \"id\": 1}\n{\"return\": {}, \"id\": 2}\n{\"return\": {}, \"id\": 3}\n";
  ASSERT_EQ(write(qemu.get(), said.data(), said.size()), static_cast<ssize_t>(said.size()));
  auto client = QmpClient::FromFd(UniqueFd(fds[1]), steady_clock::now() + seconds(5));
  ASSERT_OK(client);
  ASSERT_EQ(pipe2(fds, O_CLOEXEC), 0);
  const UniqueFd reader(fds[0]), writer(fds[1]);
  // What came with a read: its text, and how many descriptors.
  const auto next = [&](int* fd) {
    char text[256], control[CMSG_SPACE(4 * sizeof(int))];
    iovec part{text, sizeof text};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t n = recvmsg(qemu.get(), &message, MSG_CMSG_CLOEXEC);
    *fd = -1;
    if (const cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr) {
      EXPECT_EQ(header->cmsg_len, CMSG_LEN(sizeof(int)));
      memcpy(fd, CMSG_DATA(header), sizeof *fd);
    }
    return std::string(text, static_cast<size_t>(std::max<ssize_t>(n, 0)));
  };
  int fd = -1;
  EXPECT_THAT(next(&fd), HasSubstr("qmp_capabilities"));
  EXPECT_EQ(fd, -1);
  EXPECT_OK((*client)->Execute("add-fd", "", seconds(5), writer.get()));
  EXPECT_EQ(next(&fd), "{\"execute\":\"add-fd\",\"id\":2}\n");
  ASSERT_GE(fd, 0);
  const UniqueFd theirs(fd);
  EXPECT_EQ(write(theirs.get(), "x", 1), 1);
  char x = 0;
  EXPECT_EQ(read(reader.get(), &x, 1), 1);
  EXPECT_OK((*client)->Execute("quit", "", seconds(5)));
  EXPECT_THAT(next(&fd), HasSubstr("quit"));
  EXPECT_EQ(fd, -1);
}

}  // namespace
}  // namespace lamina::vmm
