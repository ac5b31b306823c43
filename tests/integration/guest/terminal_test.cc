#include <gtest/gtest.h>

#include "tests/integration/guest/pod.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

agent::v1::ResizeTerminalRequest Size(const TestContainer& container, uint32_t width, uint32_t height) {
  agent::v1::ResizeTerminalRequest request;
  request.set_container_id(container.id());
  request.set_width(width);
  request.set_height(height);
  return request;
}

TEST(Terminal, AShellOnATerminalEchoesAndKnowsItsSize) {
  GuestVm& vm = GuestVm::Shared();
  ContainerOptions options;
  options.args = {"/bin/sh"};
  options.terminal = true;
  TestContainer container(vm, options);
  ASSERT_OK(container.created());
  ASSERT_OK(vm.Call(kResizeTerminal, Size(container, 123, 45)));
  ASSERT_OK(container.Start());
  SendInput(vm, container.in_stream(), "stty size; exit 4\n", false);
  EXPECT_EQ(container.Wait().exit_status(), 4u);
  const std::string out = container.out().ToEnd();
  EXPECT_NE(out.find("stty size; exit 4\r\n"), std::string::npos) << out;
  EXPECT_NE(out.find("45 123\r\n"), std::string::npos) << out;
}

TEST(Terminal, AContainerWithoutOneCannotBeResized) {
  GuestVm& vm = GuestVm::Shared();
  TestContainer container(vm, {});
  ASSERT_OK(container.created());
  EXPECT_THAT(vm.Call(kResizeTerminal, Size(container, 1, 1)),
              testing::HasStatus(absl::StatusCode::kFailedPrecondition));
}

TEST(Terminal, AnExecHasATerminalOfItsOwn) {
  GuestVm& vm = GuestVm::Shared();
  ContainerOptions options;
  options.args = {"/bin/sleep", "100000"};
  TestContainer container(vm, options);
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  agent::v1::ExecCreateRequest request;
  request.set_container_id(container.id());
  request.set_exec_id("tty");
  request.set_process_json(ProcessJson({"/bin/sh"}));
  request.set_terminal(true);
  request.set_stdin_stream(vm.NewStream());
  request.set_stdout_stream(vm.NewStream());
  Capture out(vm, request.stdout_stream());
  ASSERT_OK(vm.Call(kExecCreate, request));
  auto size = Size(container, 77, 33);
  size.set_exec_id("tty");
  ASSERT_OK(vm.Call(kResizeTerminal, size));
  ASSERT_OK(container.Start("tty"));
  SendInput(vm, request.stdin_stream(), "stty size; exit 6\n", false);
  EXPECT_EQ(container.Wait("tty").exit_status(), 6u);
  EXPECT_NE(out.ToEnd().find("33 77\r\n"), std::string::npos);
}

}  // namespace
}  // namespace lamina::guest
