#include <gtest/gtest.h>

#include "tests/integration/guest/guest_vm.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

using agent::v1::Empty;
using agent::v1::GuestInfoResponse;

TEST(Boot, TheAgentSaysWhoItIsAndHowLongTheBootTook) {
  GuestVm& vm = GuestVm::Shared();
  const auto& hello = vm.hello();
  EXPECT_EQ(hello.protocol_version(), kProtocolVersion);
  EXPECT_FALSE(hello.agent_version().empty());
  EXPECT_GT(hello.mem_total_bytes(), 150ULL << 20);
  EXPECT_GT(hello.agent_started_boot_seconds(), 0);
  printf("from exec of QEMU to the answer: %.2f s; in the guest: agent started %.3f s\n", vm.boot_seconds(),
         hello.agent_started_boot_seconds());
}

TEST(Boot, AnotherProtocolVersionIsRefused) {
  agent::v1::HelloRequest request;
  request.set_protocol_version(99);
  const auto response = GuestVm::Shared().Call(kHello, request);
  EXPECT_THAT(response, testing::HasStatus(absl::StatusCode::kFailedPrecondition));
}

TEST(Boot, TheGuestIsOneMountedTreeWithItsOwnCgroups) {
  const auto info = GuestVm::Shared().Call(kGuestInfo, Empty());
  ASSERT_OK(info);
  for (const char* mount :
       {" /proc proc ", " /sys sysfs ", " /dev devtmpfs ", " /sys/fs/cgroup cgroup2 ", " /run tmpfs "}) {
    EXPECT_NE(info->mounts().find(mount), std::string::npos) << mount << " in " << info->mounts();
  }
  EXPECT_GT(info->mem_available_bytes(), 0u);
}

TEST(Boot, UnknownMethodsAreNamed) {
  const auto response =
      GuestVm::Shared().Call(ttrpc::Method<Empty, Empty>{kAgentService, "Nonsense"}, Empty());
  EXPECT_THAT(response, testing::HasStatus(absl::StatusCode::kUnimplemented));
}

// The smallest guest that is promised, with the agent's own share of it.
TEST(Boot, NinetySixMiBAreEnough) {
  VmOptions options;
  options.memory_mib = 96;
  options.devices = false;
  const auto vm = GuestVm::Boot(options);
  ASSERT_OK(vm);
  const auto info = (*vm)->Call(kGuestInfo, Empty());
  ASSERT_OK(info);
  EXPECT_GT(info->agent_rss_bytes(), 0u);
  EXPECT_LE(info->agent_rss_bytes(), 3ULL << 20);
  printf("96 MiB: total %llu KiB, available %llu KiB, agent %llu KiB; boot %.2f s\n",
         static_cast<unsigned long long>(info->mem_total_bytes() >> 10),
         static_cast<unsigned long long>(info->mem_available_bytes() >> 10),
         static_cast<unsigned long long>(info->agent_rss_bytes() >> 10), (*vm)->boot_seconds());
}

}  // namespace
}  // namespace lamina::guest
