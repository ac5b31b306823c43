#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/integration/guest/pod.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

using agent::v1::Empty;

// These end their machines, so each has one of its own. Without layers a container's root is a directory that
// the spec makes: here the guest's own root, seen through the shared directory.
absl::StatusOr<std::unique_ptr<GuestVm>> BootWithRoot() {
  VmOptions options;
  auto vm = GuestVm::Boot(options);
  if (!vm.ok()) return vm;
  agent::v1::ConfigureSandboxRequest request;
  request.set_sandbox_id("pod-1");
  request.set_shared_tag(kSharedTag);
  const auto configured = (*vm)->Call(kConfigureSandbox, request);
  if (!configured.ok()) return configured.status();
  std::filesystem::copy(
      BusyboxDirectory(), (*vm)->shared_directory() + "/rootfs",
      std::filesystem::copy_options::recursive | std::filesystem::copy_options::copy_symlinks);
  return vm;
}

absl::Status RunShell(GuestVm& vm, const std::string& id, const std::string& script, bool own_pids) {
  auto spec = nlohmann::json::parse(SpecJson({.args = {"/bin/sh", "-c", script}}));
  spec["root"]["path"] = "/run/lamina/shared/rootfs";
  if (!own_pids) spec["linux"]["namespaces"] = {{{"type", "mount"}}};
  agent::v1::CreateContainerRequest request;
  request.set_container_id(id);
  request.set_spec_json(spec.dump());
  const auto created = vm.Call(kCreateContainer, request);
  if (!created.ok()) return created.status();
  agent::v1::ProcessRequest process;
  process.set_container_id(id);
  return vm.Call(kStartProcess, process).status();
}

TEST(Shutdown, TheMachineEndsAfterTheAnswer) {
  VmOptions options;
  options.devices = false;
  const auto vm = GuestVm::Boot(options);
  ASSERT_OK(vm);
  const auto start = std::chrono::steady_clock::now();
  const auto answer = (*vm)->Call(kShutdown, Empty());
  EXPECT_OK(answer);
  EXPECT_TRUE((*vm)->WaitForEnd(std::chrono::seconds(30)));
  printf("shutdown: %.2f s\n",
         std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

TEST(Shutdown, ContainersThatIgnoreSignalsDoNotHoldItUp) {
  const auto vm = BootWithRoot();
  ASSERT_OK(vm);
  for (const char* id : {"a", "b"}) {
    const absl::Status run = RunShell(**vm, id, "trap '' TERM INT HUP; while true; do sleep 1; done", true);
    ASSERT_OK(run);
  }
  const auto start = std::chrono::steady_clock::now();
  EXPECT_OK((*vm)->Call(kShutdown, Empty()));
  EXPECT_TRUE((*vm)->WaitForEnd(std::chrono::seconds(15)));
  printf("shutdown with two containers: %.2f s\n",
         std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

// A container without a pid namespace of its own can reach PID 1; the machine then ends instead of hanging in
// a panic.
TEST(Shutdown, AnAgentThatCrashesPowersOff) {
  for (const char* signal : {"SEGV", "TERM"}) {
    const auto vm = BootWithRoot();
    ASSERT_OK(vm);
    const absl::Status run =
        RunShell(**vm, "killer", std::string("kill -") + signal + " 1; sleep 1000", false);
    EXPECT_THAT(run, ::testing::AnyOf(testing::HasStatus(absl::StatusCode::kOk),
                                      testing::HasStatus(absl::StatusCode::kUnavailable),
                                      testing::HasStatus(absl::StatusCode::kDeadlineExceeded)));
    EXPECT_TRUE((*vm)->WaitForEnd(std::chrono::seconds(20))) << signal;
  }
}

}  // namespace
}  // namespace lamina::guest
