// Who may ask laminad anything over its sockets: root. Others get nothing, and take nothing from others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "base/units.h"
#include "base/unix_socket.h"
#include "tests/integration/node/node_kit.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/stranger.h"

namespace lamina::node {
namespace {

using lamina::testing::StrangerIsClosed;
using ::testing::HasSubstr;

TEST(LaminadPeers, AnotherUserGetsNothingAndStopsNothing) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root, to be somebody else";
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  const std::string run = laminad.directory() + "/run";
  struct stat info {};
  for (const char* name : {"/shim.sock", "/laminad.sock"}) {
    ASSERT_EQ(stat((run + name).c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0600u) << name;
  }
  ASSERT_EQ(stat(run.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0700u);
  // Let somebody have opened all that: the peer is looked at nevertheless.
  for (const std::string& path : {laminad.directory(), run, run + "/shim.sock", run + "/laminad.sock"})
    ASSERT_EQ(chmod(path.c_str(), 0777), 0) << path;
  for (const char* name : {"/shim.sock", "/laminad.sock"}) {
    EXPECT_TRUE(StrangerIsClosed(run + name, 300)) << name;
    EXPECT_THAT(laminad.Log(), HasSubstr(run + name + ": user 65534 (process "));
  }
  EXPECT_OK(laminad.Claim("one", 320 * kMiB));
  EXPECT_EQ(RunLamina({"claims"}, &laminad).exit_code, 0);
}

TEST(LaminadPeers, SilentConnectionsToGrpcAreBounded) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 80; ++i) {
    absl::StatusOr<UniqueFd> fd = ConnectUnix(laminad.directory() + "/run/laminad.sock");
    ASSERT_OK(fd);
    silent.push_back(std::move(*fd));
  }
  EXPECT_TRUE(Eventually([&] {
    return laminad.Log().find("is turned away: 64 connections are open already") != std::string::npos;
  }));
  EXPECT_OK(laminad.Claim("one", 320 * kMiB));
  EXPECT_EQ(RunLamina({"claims"}, &laminad).exit_code, 3);
  silent.clear();
  EXPECT_TRUE(Eventually([&] { return RunLamina({"claims"}, &laminad).exit_code == 0; }));
  EXPECT_EQ(laminad.Stop(SIGTERM), 0) << laminad.Log();
}

}  // namespace
}  // namespace lamina::node
