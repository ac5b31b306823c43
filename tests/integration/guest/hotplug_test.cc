#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/integration/guest/pod.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

TEST(Hotplug, AnArenaPluggedInWhileTheCallWaitsIsUsed) {
  GuestVm& vm = GuestVm::Shared();
  const std::string directory = vm.directory() + "/hot";
  std::filesystem::create_directories(directory);
  std::ofstream(directory + "/hot-file") << "hot";
  const auto image = MakeErofs(directory, vm.directory() + "/hot.erofs");
  ASSERT_OK(image);
  const absl::Status plugged = vm.PlugArena(*image);
  ASSERT_OK(plugged);
  agent::v1::MountLayersRequest request;
  auto* layer = request.add_layers();
  layer->set_id(LayerId(0x407));
  layer->mutable_pmem()->set_pci_path("09.0/00.0");
  layer->mutable_pmem()->set_size(image->bytes);
  const auto mounted = vm.Call(kMountLayers, request);
  ASSERT_OK(mounted);
  EXPECT_TRUE(mounted->results(0).dax());
  printf("hotplugged pmem: device %.3f s\n", mounted->results(0).wait_device_seconds());
  ContainerOptions options;
  options.layers = {LayerId(0x407), BusyboxLayer(vm)};
  options.args = {"/bin/cat", "/hot-file"};
  TestContainer container(vm, options);
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  EXPECT_EQ(container.out().ToEnd(), "hot");
}

TEST(Hotplug, VcpusComeOnlineAndGoOffline) {
  VmOptions options;
  options.devices = false;
  options.max_vcpus = 2;
  const auto vm = GuestVm::Boot(options);
  ASSERT_OK(vm);
  const absl::Status plugged = (*vm)->Qmp(
      R"({"execute":"device_add","arguments":{"driver":"max-x86_64-cpu","id":"cpu1","socket-id":0,"core-id":1,"thread-id":0}})");
  ASSERT_OK(plugged);
  const auto set = [&](uint32_t vcpus) {
    agent::v1::SetVcpusRequest request;
    request.set_vcpus(vcpus);
    return (*vm)->Call(kSetVcpus, request);
  };
  for (const uint32_t wanted : {2u, 2u, 1u, 2u}) {
    const auto reached = set(wanted);
    ASSERT_OK(reached);
    EXPECT_EQ(reached->online(), wanted);
  }
  EXPECT_THAT(set(0), testing::HasStatus(absl::StatusCode::kInvalidArgument));
  const auto too_many = set(3);
  ASSERT_OK(too_many);
  EXPECT_EQ(too_many->online(), 2u) << "what is reached is told";
}

}  // namespace
}  // namespace lamina::guest
