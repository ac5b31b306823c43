#include "guest/agent/system.h"

#include <gtest/gtest.h>

#include "guest/agent/boot.h"
#include "guest/agent/crun.h"
#include "guest/agent/run.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

TEST(System, SysctlNamesBecomePathsBelowProcSys) {
  EXPECT_EQ(*SysctlPath("net.ipv4.ip_forward"), "/proc/sys/net/ipv4/ip_forward");
  EXPECT_EQ(*SysctlPath("net/ipv4/conf/eth0.1/forwarding"), "/proc/sys/net/ipv4/conf/eth0.1/forwarding");
  EXPECT_EQ(*SysctlPath("net.ipv4.conf.eth0/1.forwarding"), "/proc/sys/net/ipv4/conf/eth0.1/forwarding");
  for (const std::string& bad :
       {std::string(), std::string("a..b"), std::string("../x"), std::string("net/../../x"),
        std::string("a b"), std::string("/etc/passwd"), std::string("a."), std::string(300, 'a')}) {
    EXPECT_THAT(SysctlPath(bad), testing::HasStatus(absl::StatusCode::kInvalidArgument)) << bad;
  }
}

TEST(System, ControllersAreEnabledByName) {
  EXPECT_EQ(SubtreeControlOf("cpuset cpu io memory pids"), "+cpuset +cpu +io +memory +pids");
  EXPECT_EQ(SubtreeControlOf(""), "");
}

TEST(Crun, ErrorsCarryCrunsWordsAndACode) {
  const absl::Status missing = CrunError("create", 1,
                                         "2026-01-02T10:00:00.000000000Z: executable file `nope` not found "
                                         "in $PATH: No such file or directory\n");
  EXPECT_THAT(missing, testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_EQ(missing.message(),
            "crun create: executable file `nope` not found in $PATH: No such file or directory");
  EXPECT_THAT(CrunError("exec", 1, "open executable: Permission denied"),
              testing::HasStatus(absl::StatusCode::kPermissionDenied));
  EXPECT_EQ(CrunError("exec", 1, "something else\nand more\n").message(),
            "crun exec: something else; and more");
  EXPECT_EQ(CrunError("exec", 7, "").message(), "crun exec: exit code 7");
  EXPECT_LE(CrunError("exec", 7, std::string(100000, 'x')).message().size(), 2200u);
}

TEST(Run, ArgumentsOfTheProgramThatIsNotInit) {
  const auto parse = [](std::vector<const char*> words) {
    words.insert(words.begin(), "lamina-agent");
    return ParseArguments(static_cast<int>(words.size()), const_cast<char**>(words.data()));
  };
  const auto options = parse({"--no-boot", "--rpc-socket", "/r", "--stdio-socket", "/s", "--root", "/x"});
  ASSERT_OK(options);
  EXPECT_FALSE(options->boot);
  EXPECT_EQ(options->rpc_socket, "/r");
  EXPECT_EQ(options->root, "/x");
  EXPECT_NOT_OK(parse({}));
  EXPECT_NOT_OK(parse({"--no-boot"}));
  EXPECT_NOT_OK(parse({"--no-boot", "--rpc-socket"}));
  EXPECT_NOT_OK(parse({"--no-boot", "--rpc-socket", "/r", "--stdio-socket", "/s", "--root", "rel"}));
  EXPECT_NOT_OK(parse({"--what"}));
}

}  // namespace
}  // namespace lamina::guest
