// What a client of REST may do to laminad: nothing that others notice.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <vector>

#include "base/file_system.h"
#include "base/units.h"
#include "tests/integration/node/node_kit.h"
#include "tests/testing/rest_client.h"
#include "tests/testing/status_matchers.h"

namespace lamina::node {
namespace {

using lamina::testing::RestClient;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

uint16_t PortOf(const Laminad& laminad) {
  const std::string& address = laminad.rest_address();
  return static_cast<uint16_t>(std::stoi(address.substr(address.find(':') + 1)));
}

// VmRSS, VmHWM (the highest so far) in bytes.
uint64_t Memory(pid_t pid, const std::string& which) {
  std::ifstream status(fmt::format("/proc/{}/status", pid));
  for (std::string word; status >> word;) {
    uint64_t kib = 0;
    if (word == which + ":" && status >> kib) return kib * kKiB;
  }
  return 0;
}

size_t Descriptors(pid_t pid) {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry :
       std::filesystem::directory_iterator(fmt::format("/proc/{}/fd", pid)))
    ++count;
  return count;
}

// namespace -> how many threads stand in it.
std::map<std::string, int> NetworksOfThreads(pid_t pid) {
  std::map<std::string, int> networks;
  for (const auto& task : std::filesystem::directory_iterator(fmt::format("/proc/{}/task", pid))) {
    std::error_code gone;
    const auto network = std::filesystem::read_symlink(task.path() / "ns/net", gone);
    if (!gone) ++networks[network.string()];
  }
  return networks;
}

// The ports of the loopback at which the process listens, as its main thread's network has it.
std::set<uint16_t> ListensAt(pid_t pid) {
  std::set<std::string> sockets;
  for (const auto& entry : std::filesystem::directory_iterator(fmt::format("/proc/{}/fd", pid))) {
    std::error_code gone;
    sockets.insert(std::filesystem::read_symlink(entry.path(), gone).string());
  }
  std::set<uint16_t> ports;
  std::ifstream table(fmt::format("/proc/{}/net/tcp", pid));
  for (std::string line; std::getline(table, line);) {
    std::istringstream fields(line);
    std::string number, local, remote, state, queues, timer, retransmits, user, timeout, inode;
    fields >> number >> local >> remote >> state >> queues >> timer >> retransmits >> user >> timeout >>
        inode;
    if (state == "0A" && sockets.count("socket:[" + inode + "]") != 0)
      ports.insert(static_cast<uint16_t>(std::stoi(local.substr(local.find(':') + 1), nullptr, 16)));
  }
  return ports;
}

TEST(LaminadRestBounds, ThousandHalfRequestsStopNoClaim) {
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = std::max<rlim_t>(limit.rlim_cur, std::min<rlim_t>(limit.rlim_max, 4096));
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  ASSERT_GE(limit.rlim_cur, 1500u) << "too few descriptors for the test itself";
  Laminad laminad;
  ASSERT_OK(laminad.Start({"prlimit", "--nofile=1024"})) << laminad.Log();
  std::vector<std::unique_ptr<RestClient>> clients;
  for (int i = 0; i < 1100; ++i) {
    clients.push_back(std::make_unique<RestClient>(PortOf(laminad)));
    ASSERT_TRUE(clients.back()->connected()) << i;
    clients.back()->Send("GET /metrics HTTP/1.1\r\nHost: x\r\n");
  }
  EXPECT_OK(laminad.Claim("one", 320 * kMiB));
  EXPECT_EQ(RunLamina({"claims"}, &laminad).exit_code, 0);
  EXPECT_EQ(laminad.Http("/healthz").body, "ok\n");
  EXPECT_LT(Descriptors(laminad.pid()), 150u);
  EXPECT_THAT(laminad.Log(), HasSubstr("more than 64 connections"));
  clients.clear();
  EXPECT_EQ(laminad.Http("/healthz").body, "ok\n");
}

TEST(LaminadRestBounds, ALongBodyLeavesNothingInMemory) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  laminad.Http("/metrics");
  std::ofstream(fmt::format("/proc/{}/clear_refs", laminad.pid())) << "5";  // VmHWM is counted anew
  const uint64_t before = Memory(laminad.pid(), "VmRSS");
  ASSERT_GT(before, 0u);
  const std::string megabyte(1 << 20, 'x');
  for (const char* head : {"POST /v1/claims HTTP/1.1\r\nHost: x\r\nContent-Length: 2147483648\r\n\r\n",
                           "GET /v1/claims HTTP/1.1\r\nHost: x\r\nContent-Length: 2147483648\r\n\r\n"}) {
    RestClient client(PortOf(laminad));
    ASSERT_TRUE(client.Send(head));
    int sent = 0;
    while (sent < 16384 && client.Send(megabyte)) ++sent;
    EXPECT_LT(sent, 16384) << head;
  }
  EXPECT_LT(Memory(laminad.pid(), "VmHWM"), before + 6 * kMiB);
  EXPECT_OK(laminad.Claim("one", 320 * kMiB));
}

TEST(LaminadRestBounds, NothingButRestStandsInTheInnerNetwork) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  EXPECT_OK(laminad.Claim("one", 320 * kMiB));
  for (const char* path : {"/metrics", "/v1/status", "/v1/sandboxes", "/v1/layers"}) laminad.Http(path);
  EXPECT_EQ(RunLamina({"claims"}, &laminad).exit_code, 0);
  if (laminad.Log().find("no network of its own") != std::string::npos) GTEST_SKIP() << laminad.Log();
  const std::map<std::string, int> networks = NetworksOfThreads(laminad.pid());
  ASSERT_EQ(networks.size(), 2u);
  const std::string main =
      std::filesystem::read_symlink(fmt::format("/proc/{}/ns/net", laminad.pid())).string();
  for (const auto& [network, threads] : networks) {
    EXPECT_TRUE(network == main || threads == 3) << threads << ": the front's and cpprestsdk's two";
  }
  EXPECT_EQ(ListensAt(laminad.pid()), std::set<uint16_t>{PortOf(laminad)});
}

TEST(LaminadRestBounds, WithoutCapabilitiesItSaysSoAndTellsNobodyAnything) {
  Laminad laminad;
  ASSERT_OK(laminad.Start({"setpriv", "--bounding-set", "-sys_admin"})) << laminad.Log();
  EXPECT_THAT(laminad.Log(), HasSubstr("no network of its own (unshare: Operation not permitted)"));
  std::set<uint16_t> ports = ListensAt(laminad.pid());
  ASSERT_EQ(ports.erase(PortOf(laminad)), 1u);
  ASSERT_EQ(ports.size(), 1u);
  for (const char* field : {"", "X-Lamina-Front: \r\n", "X-Lamina-Front: 0123456789abcdef\r\n"}) {
    RestClient client(*ports.begin());
    ASSERT_TRUE(
        client.Send(fmt::format("GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{}\r\n", field)));
    EXPECT_THAT(client.Receive(), AllOf(StartsWith("HTTP/1.1 403"), Not(HasSubstr("capacity")))) << field;
  }
  EXPECT_EQ(laminad.Http("/v1/status").status, 200);
}

TEST(LaminadRestBounds, TokenAndItsFileComeFromTheConfig) {
  const std::string path = fmt::format("/tmp/lamina-rest-token-{}", getpid());
  Laminad laminad(fmt::format("rest_token_file = \"{}\"\n", path));
  EXPECT_NOT_OK(laminad.Start());
  EXPECT_EQ(laminad.Stop(SIGTERM), 1);
  EXPECT_THAT(laminad.Log(), HasSubstr(path + ": No such file or directory"));
  WriteFile(path, "secret-word\n");
  EXPECT_OK(laminad.Start()) << laminad.Log();
  EXPECT_EQ(laminad.Http("/v1/claims").status, 401);
  EXPECT_EQ(laminad.Http("/metrics").status, 401);
  EXPECT_EQ(laminad.Http("/v1/claims", {"-H", "Authorization: Bearer secret-word"}).status, 200);
  ASSERT_OK(FileSystem::Real().Remove(path));
}

}  // namespace
}  // namespace lamina::node
