#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/integration/guest/pod.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

namespace fs = std::filesystem;

TEST(Shared, AVolumeIsTheHostsDirectoryInBothDirections) {
  GuestVm& vm = GuestVm::Shared();
  fs::create_directories(vm.shared_directory() + "/volume");
  std::ofstream(vm.shared_directory() + "/volume/from-host") << "hello";
  ContainerOptions options;
  options.args = {"/bin/sh", "-c", "cat /data/from-host; echo back > /data/from-guest"};
  options.change_spec = [](std::string& text) {
    auto spec = nlohmann::json::parse(text);
    spec["mounts"].push_back({{"destination", "/data"},
                              {"type", "bind"},
                              {"source", "/run/lamina/shared/volume"},
                              {"options", {"rbind", "rw", "rprivate"}}});
    text = spec.dump();
  };
  TestContainer container(vm, options);
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  EXPECT_EQ(container.Wait().exit_status(), 0u);
  EXPECT_EQ(container.out().ToEnd(), "hello");
  std::ifstream written(vm.shared_directory() + "/volume/from-guest");
  std::string line;
  std::getline(written, line);
  EXPECT_EQ(line, "back");
}

TEST(Shared, ARootBelowItNeedsNoLayers) {
  GuestVm& vm = GuestVm::Shared();
  fs::copy(
      BusyboxDirectory(), vm.shared_directory() + "/rootfs",
      fs::copy_options::recursive | fs::copy_options::copy_symlinks | fs::copy_options::overwrite_existing);
  auto spec = nlohmann::json::parse(SpecJson({.args = {"/bin/echo", "rooted"}}));
  spec["root"]["path"] = "/run/lamina/shared/rootfs";
  agent::v1::CreateContainerRequest request;
  request.set_container_id("shared-root");
  request.set_spec_json(spec.dump());
  request.set_stdout_stream(vm.NewStream());
  Capture out(vm, request.stdout_stream());
  const auto created = vm.Call(kCreateContainer, request);
  ASSERT_OK(created);
  agent::v1::ProcessRequest process;
  process.set_container_id("shared-root");
  EXPECT_OK(vm.Call(kStartProcess, process));
  EXPECT_EQ(out.ToEnd(), "rooted\n");
  EXPECT_OK(vm.Call(kDeleteProcess, process));
}

}  // namespace
}  // namespace lamina::guest
