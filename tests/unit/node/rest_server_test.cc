#include "node/rest_server.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <memory>
#include <thread>
#include <vector>

#include "base/file_system.h"
#include "base/subprocess.h"
#include "node/inner_network.h"
#include "tests/testing/rest_client.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::node {
namespace {

using lamina::testing::HasStatus;
using lamina::testing::RestClient;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr char kGet[] = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
constexpr size_t kLong = 8 << 20;

class RestServerTest : public ::testing::Test {
 protected:
  void Listen(RestLimits limits = {}, RestFiles files = {}) {
    absl::StatusOr<std::unique_ptr<RestServer>> server =
        RestServer::Listen({"127.0.0.1:0", files, {"/healthz"}, limits}, [this](const std::string& path) {
          ++handled_;
          if (path == "/slow") slow_.wait();
          if (path == "/long") return RestAnswer{200, "text/plain", std::string(kLong, 'x')};
          if (path == "/busy") return RestAnswer{503, "text/plain", "busy\n"};
          return RestAnswer{200, "text/plain", "path " + path + "\n"};
        });
    ASSERT_OK(server);
    server_ = std::move(*server);
  }

  std::string Ask(const std::string& bytes) {
    RestClient client(server_->port());
    EXPECT_TRUE(client.Send(bytes));
    return client.Receive();
  }
  std::string Get(const std::string& path, const std::string& fields = "") {
    return Ask("GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + fields + "\r\n");
  }

  std::atomic<int> handled_{0};
  std::latch slow_{1};
  std::unique_ptr<RestServer> server_;
};

TEST_F(RestServerTest, PassesOnRequestsAndTheirAnswers) {
  Listen();
  EXPECT_THAT(Get("/v1/claims?x=y"),
              AllOf(StartsWith("HTTP/1.1 200 OK\r\n"), HasSubstr("Content-Type: text/plain\r\n"),
                    HasSubstr("\r\n\r\npath /v1/claims\n")));
  EXPECT_THAT(Get("/busy"), AllOf(StartsWith("HTTP/1.1 503"), HasSubstr("\r\n\r\nbusy\n")));
  EXPECT_EQ(Get("/long").size() - Get("/long").find("\r\n\r\n") - 4, kLong);
}

TEST_F(RestServerTest, KeepsAConnectionForTheNextRequest) {
  Listen();
  RestClient client(server_->port());
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(client.Send(kGet));
    EXPECT_THAT(client.Receive("/healthz\n"), StartsWith("HTTP/1.1 200 OK"));
  }
  ASSERT_TRUE(client.Send(std::string(kGet) + "GET /second HTTP/1.1\r\nHost: x\r\n\r\n"));
  EXPECT_THAT(client.Receive("/second\n"), HasSubstr("path /healthz"));
}

TEST_F(RestServerTest, AHeadIsAnsweredWithTheLengthAndNoBody) {
  Listen();
  const std::string answer = Ask("HEAD /v1/claims HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(answer, AllOf(StartsWith("HTTP/1.1 200 OK"), HasSubstr("Content-Length: 16\r\n"),
                            Not(HasSubstr("path"))));
}

TEST_F(RestServerTest, WhatIsRefusedNeverReachesTheInside) {
  Listen();
  const std::string many = [] {
    std::string fields;
    for (int i = 0; i < 70; ++i) fields += fmt::format("X-{}: 1\r\n", i);
    return fields;
  }();
  const std::pair<std::string, const char*> cases[] = {
      {"POST /v1/claims HTTP/1.1\r\nHost: x\r\nContent-Length: 2147483648\r\n\r\nabc", "HTTP/1.1 405"},
      {"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 405"},
      {"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 405"},
      {"ODD / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 405"},
      {"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 2147483648\r\n\r\nabc", "HTTP/1.1 413"},
      {"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", "HTTP/1.1 413"},
      {"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na", "HTTP/1.1 400"},
      {"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 400"},
      {"\x16\x03\x01\x02\x03 hello\r\n\r\n", "HTTP/1.1 400"},
      {"GET / HTTP/9.9\r\n\r\n", "HTTP/1.1 400"},
      {"GET / HTTP/1.1\r\nHost: x\r\n" + many + "\r\n", "HTTP/1.1 431"},
      {"GET / HTTP/1.1\r\nX: " + std::string(9000, 'x') + "\r\n\r\n", "HTTP/1.1 431"},
      {"GET /" + std::string(9000, 'x') + " HTTP/1.1\r\n\r\n", "HTTP/1.1 431"},
  };
  for (const auto& [request, status] : cases) {
    const std::string answer = Ask(request);
    EXPECT_THAT(answer,
                AllOf(StartsWith(status), HasSubstr("Connection: close\r\n"), HasSubstr("{\"error\":")))
        << request.substr(0, 100);
    EXPECT_EQ(answer.find("Allow: GET, HEAD\r\n") != std::string::npos,
              std::string(status) == "HTTP/1.1 405");
  }
  EXPECT_EQ(handled_, 0);
  EXPECT_THAT(Ask("GET / HTTP/1.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
              StartsWith("HTTP/1.1 200"));
}

TEST_F(RestServerTest, ABodyIsCutOffHoweverLongItsClientSends) {
  RestLimits limits;
  limits.linger = milliseconds(200);
  Listen(limits);
  RestClient client(server_->port());
  ASSERT_TRUE(client.Send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2147483648\r\n\r\n"));
  const std::string megabyte(1 << 20, 'x');
  int sent = 0;
  while (sent < 2048 && client.Send(megabyte)) ++sent;
  EXPECT_LT(sent, 2048);
}

TEST_F(RestServerTest, AHeadThatDripsIsCutAtItsDeadline) {
  RestLimits limits;
  limits.head = milliseconds(300);
  Listen(limits);
  const auto begin = steady_clock::now();
  RestClient silent(server_->port()), drips(server_->port());
  ASSERT_TRUE(drips.Send("GET / HTTP/1.1\r\n"));
  std::string got;
  for (int i = 0; !drips.closed() && i < 200; ++i) {
    drips.Send(fmt::format("X-{}: 1\r\n", i));
    got += drips.Receive("", milliseconds(20));
  }
  EXPECT_TRUE(drips.closed());
  EXPECT_LT(steady_clock::now() - begin, seconds(3));
  EXPECT_EQ(silent.Receive(), "");
  EXPECT_TRUE(silent.closed());
  EXPECT_EQ(handled_, 0);
}

TEST_F(RestServerTest, AnIdleConnectionIsClosed) {
  RestLimits limits;
  limits.idle = milliseconds(200);
  Listen(limits);
  RestClient client(server_->port());
  ASSERT_TRUE(client.Send(kGet));
  EXPECT_THAT(client.Receive("/healthz\n"), StartsWith("HTTP/1.1 200 OK"));
  EXPECT_EQ(client.Receive(), "");
  EXPECT_TRUE(client.closed());
}

TEST_F(RestServerTest, AClientThatTakesNothingIsCutOff) {
  RestLimits limits;
  limits.write = milliseconds(300);
  limits.untaken_bytes = kLong + kLong / 2;
  Listen(limits);
  RestClient client(server_->port(), 4096);
  ASSERT_TRUE(client.Send("GET /long HTTP/1.1\r\nHost: x\r\n\r\n"));
  ASSERT_THAT(client.Receive("HTTP/1.1 200"), StartsWith("HTTP/1.1 200"));
  // Nobody else is given as much until it is cut off.
  const auto end = steady_clock::now() + seconds(20);
  while (Get("/long").rfind("HTTP/1.1 200", 0) != 0 && steady_clock::now() < end) std::this_thread::yield();
  EXPECT_LT(steady_clock::now(), end);
  EXPECT_LT(client.Receive().size(), kLong);
  EXPECT_TRUE(client.closed());
}

TEST_F(RestServerTest, AnswersThatWaitToBeTakenAreBounded) {
  RestLimits limits;
  limits.untaken_bytes = kLong + kLong / 2;
  Listen(limits);
  RestClient slow(server_->port(), 4096);
  ASSERT_TRUE(slow.Send("GET /long HTTP/1.1\r\nHost: x\r\n\r\n"));
  ASSERT_THAT(slow.Receive("HTTP/1.1 200"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Get("/long"), AllOf(StartsWith("HTTP/1.1 503"), HasSubstr("Retry-After: 1\r\n")));
  EXPECT_THAT(Get("/healthz"), StartsWith("HTTP/1.1 200"));
}

TEST_F(RestServerTest, WhoComesWithARequestIsServedHoweverManyHoldConnections) {
  RestLimits limits;
  limits.connections = 8;
  Listen(limits);
  std::vector<std::unique_ptr<RestClient>> held;
  for (int i = 0; i < 100; ++i) {
    held.push_back(std::make_unique<RestClient>(server_->port()));
    ASSERT_TRUE(held.back()->connected());
    held.back()->Send(i % 2 == 0 ? "GET /half HTTP/1.1\r\n" : "");
  }
  EXPECT_THAT(Get("/healthz"), StartsWith("HTTP/1.1 200"));
  // The oldest went.
  EXPECT_EQ(held[0]->Receive(), "");
  EXPECT_TRUE(held[0]->closed());
  EXPECT_EQ(held[99]->Receive("", milliseconds(50)), "");
  EXPECT_FALSE(held[99]->closed());
}

TEST_F(RestServerTest, AReplyThatIsBeingMadeIsNotGivenUpForNewcomers) {
  RestLimits limits;
  limits.connections = 2;
  Listen(limits);
  RestClient one(server_->port()), two(server_->port());
  for (RestClient* client : {&one, &two})
    ASSERT_TRUE(client->Send("GET /slow HTTP/1.1\r\nConnection: close\r\n\r\n"));
  while (handled_ < 2) std::this_thread::yield();
  RestClient third(server_->port());
  EXPECT_EQ(third.Receive(), "");
  EXPECT_TRUE(third.closed());
  slow_.count_down();
  EXPECT_THAT(one.Receive(), HasSubstr("path /slow"));
  EXPECT_THAT(two.Receive(), HasSubstr("path /slow"));
}

TEST_F(RestServerTest, AnAnswerThatDoesNotComeIsGivenUp) {
  RestLimits limits;
  limits.answer = milliseconds(200);
  Listen(limits);
  EXPECT_THAT(Get("/slow"), StartsWith("HTTP/1.1 504"));
  slow_.count_down();
}

TEST_F(RestServerTest, MoreThanItAnswersAtATimeWait) {
  RestLimits limits;
  limits.calls = 1;
  Listen(limits);
  RestClient slow(server_->port());
  ASSERT_TRUE(slow.Send("GET /slow HTTP/1.1\r\nConnection: close\r\n\r\n"));
  while (handled_ < 1) std::this_thread::yield();
  RestClient waits(server_->port());
  ASSERT_TRUE(waits.Send("GET /next HTTP/1.1\r\nConnection: close\r\n\r\n"));
  EXPECT_EQ(waits.Receive("", milliseconds(100)), "");
  EXPECT_EQ(handled_, 1);
  slow_.count_down();
  EXPECT_THAT(waits.Receive(), HasSubstr("path /next"));
}

TEST_F(RestServerTest, APortThatIsTakenIsNamed) {
  Listen();
  const std::string address = fmt::format("127.0.0.1:{}", server_->port());
  EXPECT_THAT(
      RestServer::Listen({address, {}, {}, {}}, [](const std::string&) { return RestAnswer{}; }).status(),
      HasStatus(absl::StatusCode::kUnavailable, "REST at " + address + ": Address already in use"));
}

// /proc/<pid>/task/<tid>/net/tcp is the view of that thread's namespace.
TEST_F(RestServerTest, TheInnerListenerIsOutOfReach) {
  const auto network = InnerNetwork::Get();
  ASSERT_OK(network);
  if (!(*network)->why_open().empty()) GTEST_SKIP() << (*network)->why_open();
  Listen();
  const auto listens = [](const std::string& table, uint16_t port) {
    const std::string text = FileSystem::Real().Read(table, 1 << 20).value_or("");
    return text.find(fmt::format(" 0100007F:{:04X} 00000000:0000 0A ", port)) != std::string::npos;
  };
  const uint16_t next = (*network)->FreePort().value_or(0);
  const auto inner = static_cast<uint16_t>(next - 1);  // that of the server
  bool inside = false, front_inside = true, refused_inside = false;
  std::thread([&] {
    ASSERT_OK((*network)->Enter());
    inside = listens("/proc/thread-self/net/tcp", inner);
    front_inside = listens("/proc/thread-self/net/tcp", server_->port());
    // Who were there without the secret would be told nothing.
    RestClient client(inner);
    ASSERT_TRUE(client.connected());
    ASSERT_TRUE(client.Send("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    refused_inside = client.Receive().find("HTTP/1.1 403") == 0;
  }).join();
  EXPECT_TRUE(inside);
  EXPECT_FALSE(front_inside);
  EXPECT_TRUE(refused_inside);
  EXPECT_FALSE(listens("/proc/thread-self/net/tcp", inner));
  EXPECT_FALSE(RestClient(inner).connected());
  EXPECT_EQ(handled_, 0);
}

class RestCredentialsTest : public RestServerTest {
 protected:
  std::string Path(const std::string& name) const { return directory_.path() + "/" + name; }
  void Write(const std::string& name, const std::string& text) {
    ASSERT_OK(WriteFileAtomically(FileSystem::Real(), Path(name), text, 0600));
  }
  // A certificate of its own signature for `name`, with its key, beside each other.
  void MakeCertificate(const std::string& name) {
    const absl::StatusOr<CommandResult> made =
        RunCommand({"openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                    "-nodes", "-subj", "/CN=" + name, "-addext", "subjectAltName=DNS:" + name, "-days", "2",
                    "-keyout", Path(name + ".key"), "-out", Path(name + ".crt")},
                   seconds(60));
    ASSERT_OK(made);
    ASSERT_EQ(made->exit_code, 0) << made->output;
  }
  void Install(const std::string& name) {
    for (const char* kind : {"crt", "key"})
      Write(fmt::format("tls.{}", kind),
            FileSystem::Real().Read(Path(name + "." + kind), 1 << 20).value_or(""));
  }
  // By a client that trusts nothing but `name`'s certificate.
  std::string Curl(const std::string& name, const std::vector<std::string>& arguments = {}) {
    std::vector<std::string> argv = {"curl",
                                     "-sS",
                                     "-i",
                                     "--max-time",
                                     "10",
                                     "--cacert",
                                     Path(name + ".crt"),
                                     "--resolve",
                                     fmt::format("{}:{}:127.0.0.1", name, server_->port())};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    argv.push_back(fmt::format("https://{}:{}/v1/claims", name, server_->port()));
    const absl::StatusOr<CommandResult> result = RunCommand(argv, seconds(20));
    return result.ok() ? result->output : Message(result.status());
  }
  RestFiles Tls() const { return {Path("tls.crt"), Path("tls.key"), ""}; }

  lamina::testing::TempDir directory_;
};

TEST_F(RestCredentialsTest, WhoHasNoTokenIsToldOnlyWhatProbesNeed) {
  Write("token", "first-token\n");
  Listen({}, {"", "", Path("token")});
  EXPECT_THAT(Get("/v1/claims"),
              AllOf(StartsWith("HTTP/1.1 401"), HasSubstr("WWW-Authenticate: Bearer\r\n")));
  for (const char* wrong : {"Bearer first-toke", "Bearer first-token2", "Bearer ", "Bearer",
                            "Basic first-token", "first-token", ""})
    EXPECT_THAT(Get("/v1/claims", fmt::format("Authorization: {}\r\n", wrong)), StartsWith("HTTP/1.1 401"))
        << wrong;
  for (const char* path :
       {"/healthz/", "/healthz/../v1/claims", "//healthz", "/%68ealthz", "http://x/healthz", "/"})
    EXPECT_THAT(Get(path), StartsWith("HTTP/1.1 401")) << path;
  EXPECT_EQ(handled_, 0);
  EXPECT_THAT(Get("/healthz"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Get("/healthz?x"), HasSubstr("path /healthz\n"));
  EXPECT_THAT(Get("/v1/claims", "Authorization: Bearer first-token\r\n"), HasSubstr("path /v1/claims"));
}

TEST_F(RestCredentialsTest, ATokenThatIsReplacedHoldsFromThenOn) {
  Write("token", "first-token");
  Listen({}, {"", "", Path("token")});
  const auto status = [&](const std::string& token) {
    return Get("/v1/claims", "Authorization: Bearer " + token + "\r\n").substr(9, 3);
  };
  EXPECT_EQ(status("first-token"), "200");
  Write("token", "other-token");
  EXPECT_EQ(status("first-token"), "401");
  EXPECT_EQ(status("other-token"), "200");
  for (const char* useless : {"", "two words", "\n"}) {
    Write("token", useless);
    EXPECT_EQ(status("other-token"), "200") << useless;
  }
  ASSERT_OK(FileSystem::Real().Remove(Path("token")));
  EXPECT_EQ(status("other-token"), "200");
  Write("token", "third-token");
  EXPECT_EQ(status("other-token"), "401");
  EXPECT_EQ(status("third-token"), "200");
}

TEST_F(RestCredentialsTest, ServesTlsAndTakesANewCertificate) {
  MakeCertificate("first");
  MakeCertificate("second");
  Install("first");
  Listen({}, Tls());
  EXPECT_THAT(Curl("first"), AllOf(HasSubstr("HTTP/1.1 200 OK"), HasSubstr("path /v1/claims")));
  EXPECT_THAT(Curl("first", {"--tls-max", "1.1"}), Not(HasSubstr("200 OK")));
  EXPECT_THAT(Curl("first", {"-X", "POST", "-d", std::string(100, 'x')}), HasSubstr("HTTP/1.1 405"));
  EXPECT_THAT(Get("/v1/claims"), Not(HasSubstr("200 OK")));  // plain HTTP is no TLS
  EXPECT_THAT(Curl("second"), Not(HasSubstr("200 OK")));
  Install("second");
  EXPECT_THAT(Curl("second"), HasSubstr("HTTP/1.1 200 OK"));
  // A key without its certificate is not taken.
  Write("tls.key", FileSystem::Real().Read(Path("first.key"), 1 << 20).value_or(""));
  EXPECT_THAT(Curl("second"), HasSubstr("HTTP/1.1 200 OK"));
}

TEST_F(RestCredentialsTest, ATlsHandshakeThatStandsStillIsCutOff) {
  MakeCertificate("first");
  Install("first");
  RestLimits limits;
  limits.head = milliseconds(200);
  Listen(limits, Tls());
  RestClient client(server_->port());
  ASSERT_TRUE(client.Send("\x16\x03\x01"));
  client.Receive();
  EXPECT_TRUE(client.closed());
}

TEST_F(RestCredentialsTest, FilesThatCannotBeUsedAreNamed) {
  MakeCertificate("first");
  MakeCertificate("second");
  Write("empty", "");
  const auto status = [&](const RestFiles& files) { return RestCredentials::Load(files).status(); };
  using enum absl::StatusCode;
  EXPECT_THAT(status({"", "", Path("empty")}),
              HasStatus(kInvalidArgument, Path("empty") + ": a bearer token is one"));
  EXPECT_THAT(status({"", "", Path("none")}), HasStatus(kNotFound, Path("none")));
  EXPECT_THAT(status({Path("none"), Path("first.key"), ""}), HasStatus(kNotFound, Path("none")));
  EXPECT_THAT(status({Path("first.crt"), Path("none"), ""}), HasStatus(kNotFound, Path("none")));
  EXPECT_THAT(status({Path("empty"), Path("first.key"), ""}),
              HasStatus(kInvalidArgument, Path("empty") + ": no certificate"));
  EXPECT_THAT(status({Path("first.crt"), Path("empty"), ""}),
              HasStatus(kInvalidArgument, Path("empty") + ": not the private key"));
  EXPECT_THAT(status({Path("first.crt"), Path("second.key"), ""}),
              HasStatus(kInvalidArgument, Path("second.key") + ": not the private key"));
  EXPECT_THAT(status({Path("first.crt"), "", ""}), HasStatus(kInvalidArgument, "needs its key"));
}

}  // namespace
}  // namespace lamina::node
