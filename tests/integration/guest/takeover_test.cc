// The host's end changes hands while containers run: a shim was killed, its successor connects.
#include <gtest/gtest.h>

#include "tests/integration/guest/pod.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

TEST(Takeover, ASuccessorFindsTheContainersAndTheirOutputGoesOn) {
  GuestVm& vm = GuestVm::Shared();
  ContainerOptions options;
  // More output than a window, so that it is in flight when the host's end goes away; then what the successor
  // must see.
  options.args = {"/bin/sh", "-c", "yes 0123456789abcde | head -c 1048576; echo; echo finished; exit 3"};
  TestContainer container(vm, options);
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  container.out().UntilContains("0123456789abcde");
  const absl::Status again = vm.Reconnect();
  ASSERT_OK(again);
  Capture rest(vm, container.out_stream());
  EXPECT_NE(rest.ToEnd().find("\nfinished\n"), std::string::npos);
  EXPECT_EQ(container.Wait().exit_status(), 3u);
  EXPECT_EQ(vm.mux().status(), absl::OkStatus());
  // New containers work as before.
  options.args = {"/bin/echo", "new"};
  TestContainer fresh(vm, options);
  ASSERT_OK(fresh.created());
  ASSERT_OK(fresh.Start());
  EXPECT_EQ(fresh.out().ToEnd(), "new\n");
}

TEST(Takeover, InputThatTheSuccessorSendsArrives) {
  GuestVm& vm = GuestVm::Shared();
  ContainerOptions options;
  options.args = {"/bin/sh", "-c", "while read line; do echo got $line; done; echo end"};
  options.stdin_stream = true;
  TestContainer container(vm, options);
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  SendInput(vm, container.in_stream(), "one\n", false);
  container.out().UntilContains("got one\n");
  const absl::Status again = vm.Reconnect();
  ASSERT_OK(again);
  Capture rest(vm, container.out_stream());
  SendInput(vm, container.in_stream(), "two\n", true);
  EXPECT_EQ(rest.ToEnd(), "got two\nend\n");
  EXPECT_EQ(container.Wait().exit_status(), 0u);
}

}  // namespace
}  // namespace lamina::guest
