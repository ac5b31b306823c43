#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "layers/verity.h"
#include "tests/integration/guest/pod.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

namespace fs = std::filesystem;
using agent::v1::Empty;
using agent::v1::GuestInfoResponse;
using agent::v1::MountLayersRequest;
using agent::v1::MountLayersResponse;
using agent::v1::UnmountLayersRequest;

std::string Mounts(GuestVm& vm) {
  const auto info = vm.Call(kGuestInfo, Empty());
  EXPECT_OK(info);
  return info.ok() ? info->mounts() : "";
}

std::string MakeDirectoryWith(GuestVm& vm, const std::string& name, const std::string& file,
                              const std::string& text) {
  const std::string directory = vm.directory() + "/" + name;
  fs::create_directories(directory);
  std::ofstream(directory + "/" + file) << text;
  return directory;
}

absl::Status Unmount(GuestVm& vm, const std::string& id) {
  UnmountLayersRequest request;
  request.add_ids(id);
  return vm.Call(kUnmountLayers, request).status();
}

TEST(Layers, ARegionOfTheArenaIsMountedWithDaxAndAgainAtOnce) {
  GuestVm& vm = GuestVm::Shared();
  const auto image = MakeErofs(MakeDirectoryWith(vm, "dax", "file", "text"), vm.directory() + "/dax.erofs");
  ASSERT_OK(image);
  const auto region = vm.AddToArena(*image);
  ASSERT_OK(region);
  MountLayersRequest request;
  request.add_layers()->set_id(LayerId(0xda));
  *request.mutable_layers(0)->mutable_pmem() = *region;
  for (int repeat = 0; repeat < 2; ++repeat) {
    const auto response = vm.Call(kMountLayers, request);
    ASSERT_OK(response);
    ASSERT_EQ(response->results_size(), 1);
    EXPECT_TRUE(response->results(0).dax());
    printf("pmem layer: device %.4f s, dm %.4f s, mount %.4f s\n", response->results(0).wait_device_seconds(),
           response->results(0).map_seconds(), response->results(0).mount_seconds());
  }
  const std::string mounts = Mounts(vm);
  const size_t at = mounts.find("/run/lamina/layers/" + LayerId(0xda) + " erofs ro");
  ASSERT_NE(at, std::string::npos) << mounts;
  EXPECT_NE(mounts.substr(at, 200).find("dax"), std::string::npos) << mounts.substr(at, 200);
  // The same place for another layer, or another place for the same one, is a mistake of the host.
  request.mutable_layers(0)->set_id(LayerId(0xdb));
  EXPECT_THAT(vm.Call(kMountLayers, request), testing::HasStatus(absl::StatusCode::kAlreadyExists));
  for (int repeat = 0; repeat < 2; ++repeat) EXPECT_OK(Unmount(vm, LayerId(0xda)));
  EXPECT_EQ(Mounts(vm).find(LayerId(0xda)), std::string::npos);
}

TEST(Layers, OneCallMountsManyAndSaysWhichOneItCannot) {
  GuestVm& vm = GuestVm::Shared();
  constexpr uint64_t kFirst = 0xa11000;
  MountLayersRequest request;
  UnmountLayersRequest all;
  for (uint64_t i = 0; i < 12; ++i) {
    const std::string name = "all-" + std::to_string(i);
    const auto image = MakeErofs(MakeDirectoryWith(vm, name, "file", name), vm.directory() + "/all.erofs");
    ASSERT_OK(image);
    const auto region = vm.AddToArena(*image);
    ASSERT_OK(region);
    request.add_layers()->set_id(LayerId(kFirst + i));
    *request.mutable_layers(static_cast<int>(i))->mutable_pmem() = *region;
    all.add_ids(LayerId(kFirst + i));
  }
  MountLayersRequest damaged = request;
  damaged.mutable_layers(7)->mutable_pmem()->set_offset(100 << 20);  // nothing has been written there
  const absl::Status failed = vm.Call(kMountLayers, damaged).status();
  ASSERT_NOT_OK(failed);
  EXPECT_NE(std::string(failed.message()).find(LayerId(kFirst + 7)), std::string::npos) << failed;
  EXPECT_EQ(Mounts(vm).find(LayerId(kFirst + 7)), std::string::npos);

  // Those that were mounted before the failure are found, the others are mounted now.
  const auto response = vm.Call(kMountLayers, request);
  ASSERT_OK(response);
  ASSERT_EQ(response->results_size(), request.layers_size());
  const std::string mounts = Mounts(vm);
  for (int i = 0; i < request.layers_size(); ++i) {
    EXPECT_EQ(response->results(i).id(), request.layers(i).id());
    EXPECT_NE(mounts.find("/layers/" + request.layers(i).id() + " erofs ro"), std::string::npos) << mounts;
  }
  EXPECT_OK(vm.Call(kUnmountLayers, all));
  EXPECT_EQ(Mounts(vm).find(LayerId(kFirst)), std::string::npos);
}

// As many as layers/ puts in one arena, in one call, and all of them taken away again.
TEST(Layers, AThousandAndTwentyFourMappingsOfOneDevice) {
  GuestVm& vm = GuestVm::Shared();
  constexpr uint64_t kFirst = 0x1024000;
  constexpr int kMappings = 1024;
  const auto image =
      MakeErofs(MakeDirectoryWith(vm, "one-of-many", "file", "one of many"), vm.directory() + "/many.erofs");
  ASSERT_OK(image);
  MountLayersRequest request;
  UnmountLayersRequest all;
  for (int i = 0; i < kMappings; ++i) {
    const auto region = vm.AddToArena(*image);
    ASSERT_OK(region);
    agent::v1::Layer& layer = *request.add_layers();
    layer.set_id(LayerId(kFirst + static_cast<uint64_t>(i)));
    *layer.mutable_pmem() = *region;
    all.add_ids(layer.id());
  }
  const auto start = std::chrono::steady_clock::now();
  const auto response = vm.Call(kMountLayers, request, std::chrono::minutes(5));
  ASSERT_OK(response);
  printf("%d mappings: %.2f s\n", kMappings,
         std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  ASSERT_EQ(response->results_size(), kMappings);
  for (const auto& result : response->results()) EXPECT_TRUE(result.dax()) << result.id();
  EXPECT_OK(vm.Call(kUnmountLayers, all, std::chrono::minutes(5)));
  EXPECT_EQ(Mounts(vm).find(LayerId(kFirst + kMappings - 1)), std::string::npos);
}

TEST(Layers, WhatCannotBeMountedLeavesNothing) {
  GuestVm& vm = GuestVm::Shared();
  const std::string before = Mounts(vm);
  const auto mount = [&](auto change) {
    MountLayersRequest request;
    auto* layer = request.add_layers();
    layer->set_id(LayerId(0xbad));
    layer->mutable_pmem()->set_pci_path(kPmemPath);
    layer->mutable_pmem()->set_offset(100 << 20);  // nothing has been written there
    layer->mutable_pmem()->set_size(4096);
    change(*layer);
    return vm.Call(kMountLayers, request).status();
  };
  EXPECT_NOT_OK(mount([](auto&) {})) << "zeros are no EROFS";
  EXPECT_THAT(mount([](auto& layer) { layer.mutable_pmem()->set_offset(1ULL << 40); }),
              testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(mount([](auto& layer) { layer.mutable_pmem()->set_size(100); }),
              testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(mount([](auto& layer) { layer.mutable_pmem()->set_pci_path("../../x"); }),
              testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(mount([](auto& layer) { layer.set_id("../../etc"); }),
              testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(mount([](auto& layer) { layer.clear_pmem(); }),
              testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(Mounts(vm), before);
  // The id is free again.
  EXPECT_OK(Unmount(vm, LayerId(0xbad)));
}

TEST(Layers, AHotPluggedDiskIsMountedAndLeavesTheGuestWithItsLayer) {
  GuestVm& vm = GuestVm::Shared();
  const auto image =
      MakeErofs(MakeDirectoryWith(vm, "disk", "scsi-file", "from a disk"), vm.directory() + "/disk.erofs");
  ASSERT_OK(image);
  ASSERT_OK(vm.PlugDisk(*image, 3));
  MountLayersRequest request;
  auto* layer = request.add_layers();
  layer->set_id(LayerId(0x5c51));
  layer->mutable_scsi()->set_pci_path(kScsiPath);
  layer->mutable_scsi()->set_target(0);
  layer->mutable_scsi()->set_lun(3);
  layer->mutable_scsi()->set_size(image->bytes + 4096);
  EXPECT_THAT(vm.Call(kMountLayers, request), testing::HasStatus(absl::StatusCode::kInvalidArgument))
      << "a disk of another size is another disk";
  ASSERT_OK(vm.UnplugDisk(3));

  ASSERT_OK(vm.PlugDisk(*image, 4));
  layer->mutable_scsi()->set_lun(4);
  layer->mutable_scsi()->set_size(image->bytes);
  const auto mounted = vm.Call(kMountLayers, request);
  ASSERT_OK(mounted);
  EXPECT_FALSE(mounted->results(0).dax());
  printf("scsi layer: device %.4f s, mount %.4f s\n", mounted->results(0).wait_device_seconds(),
         mounted->results(0).mount_seconds());
  {
    ContainerOptions options;
    options.layers = {LayerId(0x5c51), BusyboxLayer(vm)};
    options.args = {"/bin/cat", "/scsi-file"};
    TestContainer container(vm, options);
    ASSERT_OK(container.created());
    EXPECT_THAT(Unmount(vm, LayerId(0x5c51)), testing::HasStatus(absl::StatusCode::kFailedPrecondition))
        << "it is in use";
    ASSERT_OK(container.Start());
    EXPECT_EQ(container.Wait().exit_status(), 0u);
    EXPECT_EQ(container.out().ToEnd(), "from a disk");
  }
  ASSERT_OK(Unmount(vm, LayerId(0x5c51)));
  EXPECT_OK(vm.UnplugDisk(4));
}

// Writes over the first occurrence of `text`.
void Overwrite(const std::string& path, const std::string& text) {
  std::ifstream in(path, std::ios::binary);
  const std::string all((std::istreambuf_iterator<char>(in)), {});
  const size_t at = all.find(text);
  ASSERT_NE(at, std::string::npos);
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary)
      .seekp(static_cast<std::streamoff>(at))
      .put('?');
}

TEST(Layers, ADiskWithAHashTreeShowsNoBlockThatWasChanged) {
  GuestVm& vm = GuestVm::Shared();
  const std::string before = Mounts(vm);
  const std::string directory = MakeDirectoryWith(vm, "verity", "good", std::string(9000, 'g') + "whole");
  const std::string bad = std::string(2 << 20, 'b') + "to be damaged" + std::string(2 << 20, 'e');
  std::ofstream(directory + "/bad") << bad;
  const auto image = MakeErofs(directory, vm.directory() + "/verity.erofs");
  ASSERT_OK(image);
  const auto examined = layers::ExamineErofsImage(image->path);
  ASSERT_OK(examined);
  const std::string tree_path = vm.directory() + "/verity.tree";
  const auto tree = layers::MakeVerityTree(*examined, tree_path);
  ASSERT_OK(tree);

  MountLayersRequest request;
  auto* layer = request.add_layers();
  layer->set_id(LayerId(0x7e51));
  const auto plug = [&](uint32_t lun) {
    for (const auto& [path, bytes, disk] :
         {std::tuple(image->path, image->bytes, layer->mutable_scsi()),
          {tree_path, tree->bytes, layer->mutable_verity()->mutable_tree()}}) {
      ASSERT_OK(vm.PlugDisk({path, bytes}, lun));
      disk->set_pci_path(kScsiPath);
      disk->set_lun(lun++);
      disk->set_size(bytes);
    }
  };
  const auto mount = [&] { return vm.Call(kMountLayers, request); };
  const auto unplug = [&](uint32_t lun) {
    EXPECT_OK(vm.UnplugDisk(lun));
    EXPECT_OK(vm.UnplugDisk(lun + 1));
  };

  // Another image's root: not even the superblock is believed.
  plug(10);
  layer->mutable_verity()->set_root_hash(std::string(64, '0'));
  EXPECT_NOT_OK(mount());
  EXPECT_EQ(Mounts(vm), before);
  unplug(10);

  Overwrite(image->path, "to be damaged");
  plug(12);
  layer->mutable_verity()->set_root_hash("no hash");
  EXPECT_THAT(mount(), testing::HasStatus(absl::StatusCode::kInvalidArgument));
  unplug(12);
  plug(14);
  layer->mutable_verity()->set_root_hash(tree->root_hash);
  for (int repeat = 0; repeat < 2; ++repeat) {
    const auto mounted = mount();
    ASSERT_OK(mounted);
    printf("scsi layer with a hash tree: devices %.4f s, dm %.4f s, mount %.4f s\n",
           mounted->results(0).wait_device_seconds(), mounted->results(0).map_seconds(),
           mounted->results(0).mount_seconds());
  }
  MountLayersRequest other = request;
  other.mutable_layers(0)->mutable_verity()->set_root_hash(std::string(64, '1'));
  EXPECT_THAT(vm.Call(kMountLayers, other), testing::HasStatus(absl::StatusCode::kAlreadyExists));
  {
    ContainerOptions options;
    options.layers = {LayerId(0x7e51), BusyboxLayer(vm)};
    options.args = {"/bin/sh", "-c",
                    "tail -c 5 /good; head -c 1048576 /bad | wc -c; tail -c 3 /bad; cat /bad > /dev/null || "
                    "echo ' refused'"};
    TestContainer container(vm, options);
    ASSERT_OK(container.created());
    ASSERT_OK(container.Start());
    container.Wait();
    EXPECT_EQ(container.out().ToEnd(), "whole1048576\neee refused\n");
    EXPECT_THAT(container.err().ToEnd(), ::testing::HasSubstr("nput/output error"));
  }
  ASSERT_OK(Unmount(vm, LayerId(0x7e51)));
  EXPECT_EQ(Mounts(vm), before);
  unplug(14);

  layer->clear_place();
  layer->mutable_pmem()->set_pci_path(kPmemPath);
  layer->mutable_pmem()->set_size(4096);
  EXPECT_THAT(mount(), testing::HasStatus(absl::StatusCode::kInvalidArgument)) << "only disks have trees";
}

TEST(Layers, AHundredAndTwentyLayersStackUp) {
  GuestVm& vm = GuestVm::Shared();
  ContainerOptions options;
  std::vector<std::string> ids;
  for (int i = 0; i < 120; ++i) {
    const std::string directory = vm.directory() + "/many";
    fs::create_directories(directory);
    std::ofstream(directory + "/top") << i;
    std::ofstream(directory + "/only-" + std::to_string(i)) << i;
    ids.push_back(MountDirectory(vm, directory));
    fs::remove_all(directory);
  }
  options.layers.assign(ids.rbegin(), ids.rend());
  options.layers.push_back(BusyboxLayer(vm));
  options.args = {"/bin/sh", "-c", "cat /top; ls / | grep -c only-"};
  {
    TestContainer container(vm, options);
    ASSERT_OK(container.created());
    ASSERT_OK(container.Start());
    EXPECT_EQ(container.Wait().exit_status(), 0u);
    EXPECT_EQ(container.out().ToEnd(), "119120\n");
  }
  UnmountLayersRequest request;
  for (const std::string& id : ids) request.add_ids(id);
  EXPECT_OK(vm.Call(kUnmountLayers, request));
}

TEST(Layers, UpperLayersHideLowerOnesAndWritesStayInTheContainer) {
  GuestVm& vm = GuestVm::Shared();
  const std::string lower = MountDirectory(vm, MakeDirectoryWith(vm, "lower", "name", "lower"));
  const std::string upper = MountDirectory(vm, MakeDirectoryWith(vm, "upper", "name", "upper"));
  ContainerOptions options;
  options.layers = {upper, lower, BusyboxLayer(vm)};
  options.args = {"/bin/sh", "-c", "cat /name; echo written > /name; cat /name"};
  for (int repeat = 0; repeat < 2; ++repeat) {
    TestContainer container(vm, options);
    ASSERT_OK(container.created());
    ASSERT_OK(container.Start());
    EXPECT_EQ(container.Wait().exit_status(), 0u);
    EXPECT_EQ(container.out().ToEnd(), "upperwritten\n");
  }
}

}  // namespace
}  // namespace lamina::guest
