#include "cri/pod_disks.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/loop.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/ttrpc/fake_caller.h"
#include "base/units.h"
#include "cri/volume_kind.h"
#include "guest/protocol/contract.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"
#include "vmm/fake_hypervisor.h"

namespace lamina::cri {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using agent::v1::Empty;
using agent::v1::MountVolumeRequest;
using agent::v1::UnmountVolumeRequest;
using testing::HasStatus;

// A block device of the node whose file grows when the test says so.
class Loop {
 public:
  explicit Loop(const std::string& file) : file_(file) {
    std::ofstream(file_).flush();
    fs::resize_file(file_, 8 * kMiB);
    const UniqueFd control(open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    const UniqueFd backing(open(file_.c_str(), O_RDWR | O_CLOEXEC));
    const int number = control ? ioctl(control.get(), LOOP_CTL_GET_FREE) : -1;
    device_.reset(open(("/dev/loop" + std::to_string(number)).c_str(), O_RDWR | O_CLOEXEC));
    loop_config config{};
    config.fd = static_cast<uint32_t>(backing.get());
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    if (device_ && ioctl(device_.get(), LOOP_CONFIGURE, &config) != 0) device_.reset();
  }
  bool made() const { return static_cast<bool>(device_); }
  DeviceNumber number() const {
    struct stat info {};
    fstat(device_.get(), &info);
    return {major(info.st_rdev), minor(info.st_rdev)};
  }
  void Grow(uint64_t bytes) {
    fs::resize_file(file_, bytes);
    ASSERT_EQ(ioctl(device_.get(), LOOP_SET_CAPACITY, 0), 0);
  }

 private:
  const std::string file_;
  UniqueFd device_;
};

class PodDisksTest : public ::testing::Test {
 protected:
  void SetUp() override {
    persist::SandboxState state;
    state.sandbox_id = "pod";
    book_.Restore(state);
    vmm::VmSpec spec;
    spec.hotplug_ports = 4;
    auto vm = hypervisor_.Start(spec, {});
    ASSERT_OK(vm);
    vm_ = std::move(*vm);
    agent_.Handle(guest::kMountVolume, [this](const MountVolumeRequest& request) -> absl::StatusOr<Empty> {
      mounted_.push_back(request);
      return Empty();
    });
    disks_.Attach(*vm_, agent_);
  }
  static MountVolumeRequest Volume(const std::string& name) {
    MountVolumeRequest volume;
    volume.set_name(name);
    return volume;
  }
  std::vector<persist::PodDisk> InState() {
    return book_.Look([](const persist::SandboxState& state) { return state.disks; });
  }

  const testing::TempDir dir_;
  vmm::FakeHypervisor hypervisor_;
  StateBook book_{FileSystem::Real(), dir_ / "state"};
  ttrpc::FakeCaller agent_;
  std::unique_ptr<vmm::Vm> vm_;
  std::vector<MountVolumeRequest> mounted_;
  PodDisks disks_{book_, std::chrono::milliseconds(5)};
};

TEST_F(PodDisksTest, AnImageComesAndGoes) {
  const std::string image = dir_ / "image";
  ASSERT_OK(disks_.AddImage(image, {.bytes = 64 * kMiB}, Volume("r1")));
  ASSERT_EQ(mounted_.size(), 1U);
  const agent::v1::ScsiDisk& place = mounted_[0].disk().disk();
  EXPECT_FALSE(place.pci_path().empty());
  EXPECT_EQ(place.size(), 64 * kMiB);
  ASSERT_EQ(InState().size(), 1U);
  EXPECT_EQ(InState()[0].image, image);
  // Asked for once more it is the one that is there.
  ASSERT_OK(disks_.AddImage(image, {.bytes = 64 * kMiB}, Volume("r1")));
  EXPECT_EQ(vm_->scsi().disks(), 1U);
  ASSERT_OK(disks_.Remove("r1"));
  EXPECT_FALSE(fs::exists(image));
  EXPECT_EQ(vm_->scsi().disks(), 0U);
  EXPECT_TRUE(InState().empty());
  EXPECT_OK(disks_.Remove("r1"));
}

TEST_F(PodDisksTest, OneThatIsKeptStaysForTheNextVm) {
  const std::string image = dir_ / "image";
  const DiskImageOptions options{.bytes = 64 * kMiB, .journal = true, .keep = true};
  ASSERT_OK(disks_.AddImage(image, options, Volume("p1")));
  EXPECT_TRUE(InState().empty()) << "it is not the sandbox's to remove";
  ASSERT_OK(disks_.Remove("p1"));
  EXPECT_TRUE(fs::exists(image));
  agent_.FailAt(static_cast<int>(agent_.calls().size()));
  EXPECT_NOT_OK(disks_.AddImage(image, options, Volume("p1")));
  EXPECT_TRUE(fs::exists(image)) << "nor where it could not be mounted";
  EXPECT_EQ(vm_->scsi().disks(), 0U);
}

TEST_F(PodDisksTest, WhereverItFailsNothingStays) {
  const std::string image = dir_ / "image";
  int failures = 0;
  for (int call = 0; call < 100; ++call) {
    hypervisor_.FailAt(static_cast<int>(hypervisor_.calls().size()) + call);
    const absl::Status added = disks_.AddImage(image, {.bytes = 64 * kMiB}, Volume("r1"));
    hypervisor_.FailAt(-1);
    if (added.ok()) break;
    ++failures;
    EXPECT_FALSE(fs::exists(image));
    EXPECT_TRUE(InState().empty());
  }
  EXPECT_GE(failures, 2);
  ASSERT_OK(disks_.Remove("r1"));
  EXPECT_THAT(disks_.AddImage(image, {.bytes = 1}, Volume("r1")),
              HasStatus(StatusCode::kInvalidArgument, image));
  EXPECT_THAT(disks_.AddImage(dir_ / "none/image", {.bytes = 64 * kMiB}, Volume("r1")),
              HasStatus(StatusCode::kNotFound, "none"));
  EXPECT_EQ(vm_->scsi().disks(), 0U);
  EXPECT_TRUE(InState().empty());
}

TEST_F(PodDisksTest, AnImageGoesEvenIfGuestOrVmDoNotLetGo) {
  const std::string image = dir_ / "image";
  ASSERT_OK(disks_.AddImage(image, {.bytes = 64 * kMiB}, Volume("r1")));
  agent_.FailAt(static_cast<int>(agent_.calls().size()), absl::FailedPreconditionError("busy"));
  EXPECT_THAT(disks_.Remove("r1"), HasStatus(StatusCode::kFailedPrecondition, "busy"));
  EXPECT_FALSE(fs::exists(image));
  EXPECT_EQ(vm_->scsi().disks(), 1U) << "the guest has it still";
  ASSERT_OK(disks_.AddImage(image, {.bytes = 64 * kMiB}, Volume("r2")));
  hypervisor_.EndVm();
  while (vm_->Alive().ok()) std::this_thread::yield();
  ASSERT_OK(disks_.Remove("r2"));
  EXPECT_FALSE(fs::exists(image));
  EXPECT_TRUE(InState().empty());
}

TEST_F(PodDisksTest, ADeviceIsOneDiskForAllWhoHaveIt) {
  const Loop loop(dir_ / "file");
  if (!loop.made()) GTEST_SKIP() << "no loop device can be had";
  ASSERT_OK_AND_ASSIGN(const std::string name, disks_.AddDevice(loop.number(), true));
  EXPECT_EQ(disks_.AddDevice(loop.number(), false).value_or("error"), name);
  ASSERT_EQ(mounted_.size(), 1U);
  EXPECT_FALSE(mounted_[0].block().read_only());
  EXPECT_EQ(mounted_[0].block().disk().size(), 8 * kMiB);
  ASSERT_OK(disks_.Remove(name));
  EXPECT_EQ(vm_->scsi().disks(), 1U) << "the other has it";
  ASSERT_OK(disks_.Remove(name));
  EXPECT_EQ(vm_->scsi().disks(), 0U);
  ASSERT_OK(disks_.AddDevice(loop.number(), false));
  EXPECT_TRUE(mounted_[1].block().read_only());
  EXPECT_THAT(disks_.AddDevice(loop.number(), true),
              HasStatus(StatusCode::kFailedPrecondition, "wanted writable"));
  EXPECT_THAT(disks_.AddDevice({511, 4242}, true), HasStatus(StatusCode::kNotFound, "511:4242"));
}

TEST_F(PodDisksTest, ADeviceThatGrowsIsSeenToHaveGrown) {
  Loop loop(dir_ / "file");
  if (!loop.made()) GTEST_SKIP() << "no loop device can be had";
  ASSERT_OK_AND_ASSIGN(const std::string name, disks_.AddDevice(loop.number(), true));
  loop.Grow(16 * kMiB);
  while (hypervisor_.Count(fmt::format("GrowDisk 0.0 {}", 16 * kMiB)) == 0) std::this_thread::yield();
  ASSERT_OK(disks_.Remove(name));
}

TEST_F(PodDisksTest, AGuestIsToldHowMuchRoomTheNodesDiskHas) {
  if (geteuid() != 0 || unshare(CLONE_NEWNS) != 0 ||
      mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
    GTEST_SKIP() << "needs root";
  const std::string disk = dir_ / "disk";
  fs::create_directory(disk);
  ASSERT_EQ(mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=160m"), 0);
  std::atomic<uint64_t> room{0};
  agent_.Handle(guest::kMountVolume, [&](const MountVolumeRequest& request) -> absl::StatusOr<Empty> {
    room = request.disk().room_bytes();
    return Empty();
  });
  ASSERT_OK(disks_.AddImage(disk + "/image", {.bytes = 100 * kMiB}, Volume("r1")));
  EXPECT_EQ(room, 0U);
  // Others take 100 MiB of the 160.
  const int others = open((disk + "/others").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(posix_fallocate(others, 0, static_cast<off_t>(100 * kMiB)), 0);
  // It may be told while they take it, and is told again only when it is another by more than the margin.
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  const auto in_time = [&] { return std::chrono::steady_clock::now() < until; };
  while ((room == 0 || room > 60 * kMiB) && in_time()) std::this_thread::yield();
  EXPECT_GT(room, 30 * kMiB);
  EXPECT_LE(room, 60 * kMiB);
  ASSERT_EQ(ftruncate(others, 0), 0);
  while (room != 0 && in_time()) std::this_thread::yield();
  EXPECT_EQ(room, 0U);
  close(others);
  ASSERT_OK(disks_.Remove("r1"));
  ASSERT_EQ(umount2(disk.c_str(), MNT_DETACH), 0);
}

TEST_F(PodDisksTest, AnotherProcessGoesOn) {
  persist::SandboxState state = book_.Get();
  persist::PodVolume& volume = state.volumes.emplace_back();
  volume.name = "p1";
  volume.kind = VolumeKindName(VolumeKind::kDisk);
  state.disks = {{"r1", dir_ / "image"}, {"d7-1", ""}};
  state.containers["c"].devices = {"d7-1"};
  state.containers["d"].devices = {"d7-1"};
  book_.Restore(state);
  std::ofstream(dir_ / "image") << "x";
  disks_.Restore(state);
  ASSERT_OK(disks_.AddImage(dir_ / "volume", {.bytes = 64 * kMiB, .keep = true}, Volume("p1")));
  EXPECT_FALSE(fs::exists(dir_ / "volume")) << "the guest has it already";
  EXPECT_EQ(vm_->scsi().disks(), 0U);
  ASSERT_OK(disks_.Remove("d7-1"));
  EXPECT_EQ(agent_.Count("UnmountVolume"), 0);
  ASSERT_OK(disks_.Remove("d7-1"));
  EXPECT_EQ(agent_.Count("UnmountVolume"), 1);
  ASSERT_OK(disks_.Remove("r1"));
  EXPECT_FALSE(fs::exists(dir_ / "image"));
  EXPECT_TRUE(InState().empty());
}

}  // namespace
}  // namespace lamina::cri
