#include <gtest/gtest.h>

#include "tests/integration/guest/pod.h"

namespace lamina::guest {
namespace {

// The last suites in the program's order do not matter: these have machines of their own.
TEST(Shutdown, TheMachineEndsAfterTheAnswer) {
  VmOptions options;
  options.devices = false;
  const auto vm = GuestVm::Boot(options);
  ASSERT_TRUE(vm.ok()) << vm.status();
  const auto start = std::chrono::steady_clock::now();
  const auto answer = (*vm)->Call("Shutdown", agent::v1::Empty());
  EXPECT_TRUE(answer.ok()) << answer.status();
  EXPECT_TRUE((*vm)->WaitForEnd(std::chrono::seconds(30)));
  printf("shutdown: %.2f s\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

}  // namespace
}  // namespace lamina::guest
