// Disks that are written, from the host's file to the guest's mount and back.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <thread>

#include "base/subprocess.h"
#include "base/units.h"
#include "cri/disk_image.h"
#include "tests/integration/vmm/machine.h"
#include "tests/testing/status_matchers.h"

namespace lamina::vmm {
namespace {

using cri::MakeDiskImage;
using cri::OpenDiskImage;
using lamina::testing::HasStatus;
using std::chrono::seconds;
using std::chrono::steady_clock;

DiskFile Written(const std::string& image) {
  return {.path = image, .writable = true, .open = [image] { return OpenDiskImage(image); }};
}

class WrittenDiskTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto machine = Machine::Boot({});
    ASSERT_OK(machine);
    machine_ = std::move(*machine);
  }
  agent::v1::MountVolumeRequest Volume(const std::string& name, const DiskPlace& place, uint64_t bytes) {
    agent::v1::MountVolumeRequest volume;
    volume.set_name(name);
    volume.mutable_root()->set_uid(12);
    volume.mutable_root()->set_mode(0750);
    *volume.mutable_disk()->mutable_disk() = Machine::Disk(place, bytes);
    agent::v1::Folder& folder = *volume.add_folders();
    folder.set_path("made");
    folder.set_mode(0700);
    return volume;
  }
  absl::Status Unmount(const std::string& name) {
    agent::v1::UnmountVolumeRequest request;
    request.set_name(name);
    return machine_->Call(guest::kUnmountVolume, request).status();
  }
  // What debugfs says of a path in the image.
  static std::string Look(const std::string& image, const std::string& request) {
    const auto said = RunCommand({"/sbin/debugfs", "-R", request, image}, seconds(10));
    return said.ok() ? said->output : said.status().ToString();
  }

  const lamina::testing::TempDir files_;
  std::unique_ptr<Machine> machine_;
};

TEST_F(WrittenDiskTest, WhatTheGuestWritesLiesInTheImage) {
  const std::string image = files_ / "image";
  const auto begin = steady_clock::now();
  ASSERT_OK(MakeDiskImage(image, {.bytes = kGiB}));
  const auto made = steady_clock::now();
  ScsiDisks& scsi = machine_->vm().scsi();
  const uint64_t id = *scsi.Reserve(Written(image));
  const auto place = scsi.Map(id);
  ASSERT_OK(place);
  ASSERT_OK(machine_->Call(guest::kMountVolume, Volume("v", *place, kGiB)));
  const auto seconds_of = [](auto from, auto to) { return std::chrono::duration<double>(to - from).count(); };
  printf("image made in %.3f s, attached and mounted in %.3f s\n", seconds_of(begin, made),
         seconds_of(made, steady_clock::now()));
  ASSERT_OK(Unmount("v"));
  ASSERT_OK(scsi.Unmap(id));
  EXPECT_OK(RunChecked({"/sbin/e2fsck", "-f", "-n", image}, seconds(60)));
  const std::string root = Look(image, "ls -l /");
  EXPECT_NE(root.find("made"), std::string::npos) << root;
  EXPECT_EQ(root.find("lost+found"), std::string::npos) << "a volume is empty to begin with: " << root;
  EXPECT_NE(Look(image, "stat /").find("User:    12"), std::string::npos) << Look(image, "stat /");
  struct stat info {};
  ASSERT_EQ(stat(image.c_str(), &info), 0);
  EXPECT_LT(info.st_blocks * 512, static_cast<off_t>(2 * kMiB)) << "the guest's kernel fills no inode tables";
}

TEST_F(WrittenDiskTest, InAnyOrderAndAtTheSameTime) {
  ScsiDisks& scsi = machine_->vm().scsi();
  const auto come_and_go = [&](const std::string& name, int rounds) {
    const std::string image = files_ / name;
    ASSERT_OK(MakeDiskImage(image, {.bytes = 64 * kMiB}));
    for (int i = 0; i < rounds; ++i) {
      const uint64_t id = *scsi.Reserve(Written(image));
      const auto place = scsi.Map(id);
      ASSERT_OK(place) << name << ", round " << i;
      ASSERT_OK(machine_->Call(guest::kMountVolume, Volume(name, *place, 64 * kMiB)))
          << name << ", round " << i;
      ASSERT_OK(Unmount(name)) << name << ", round " << i;
      ASSERT_OK(scsi.Unmap(id)) << name << ", round " << i;
    }
  };
  std::vector<std::thread> threads;
  for (const char* name : {"a", "b", "c"}) threads.emplace_back([&, name] { come_and_go(name, 20); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(scsi.disks(), 0U);
  for (const char* name : {"a", "b", "c"})
    EXPECT_OK(RunChecked({"/sbin/e2fsck", "-f", "-n", files_ / name}, seconds(60)));
}

TEST_F(WrittenDiskTest, ADiskThatIsDamagedOrNoFileSystemIsAnErrorAndLeavesNothing) {
  const std::string image = files_ / "image";
  ASSERT_OK(MakeDiskImage(image, {.bytes = 64 * kMiB}));
  ASSERT_OK(
      RunChecked({"dd", "if=/dev/zero", "of=" + image, "bs=1M", "count=1", "conv=notrunc"}, seconds(10)));
  ScsiDisks& scsi = machine_->vm().scsi();
  const uint64_t id = *scsi.Reserve(Written(image));
  const auto place = scsi.Map(id);
  ASSERT_OK(place);
  EXPECT_THAT(machine_->Call(guest::kMountVolume, Volume("v", *place, 64 * kMiB)),
              HasStatus(absl::StatusCode::kInvalidArgument, "mount the ext4 of /dev/sda"));
  EXPECT_OK(scsi.Unmap(id)) << "the guest has let go of it";
  ASSERT_OK(MakeDiskImage(image, {.bytes = 64 * kMiB}));
  const uint64_t again = *scsi.Reserve(Written(image));
  const auto second = scsi.Map(again);
  ASSERT_OK(second);
  EXPECT_OK(machine_->Call(guest::kMountVolume, Volume("v", *second, 64 * kMiB)));
  EXPECT_OK(machine_->Call(guest::kMountVolume, Volume("v", *second, 64 * kMiB))) << "repeated";
  EXPECT_OK(Unmount("v"));
  EXPECT_OK(scsi.Unmap(again));
}

// A disk that is gone when its file is: the VM keeps what it has opened.
TEST_F(WrittenDiskTest, ItsFileMayBeRemovedMeanwhile) {
  const std::string image = files_ / "image";
  ASSERT_OK(MakeDiskImage(image, {.bytes = 64 * kMiB}));
  ScsiDisks& scsi = machine_->vm().scsi();
  const uint64_t id = *scsi.Reserve(Written(image));
  const auto place = scsi.Map(id);
  ASSERT_OK(place);
  ASSERT_OK(cri::RemoveDiskImage(image));
  EXPECT_OK(machine_->Call(guest::kMountVolume, Volume("v", *place, 64 * kMiB)));
  EXPECT_OK(Unmount("v"));
  EXPECT_OK(scsi.Unmap(id));
}

}  // namespace
}  // namespace lamina::vmm
