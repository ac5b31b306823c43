#include "guest/agent/devices.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

namespace fs = std::filesystem;
using namespace std::string_literals;

// A sysfs as a q35 guest has it: a root port in slot 4 with a virtio-pmem behind it, a virtio-scsi in slot 5
// with two disks, serial ports, a network device.
class SysfsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/lamina-sysfs-XXXXXX";
    ASSERT_NE(mkdtemp(pattern), nullptr);
    root_ = pattern;
    const std::string pci = root_ + "/devices/pci0000:00/";
    Block(pci + "0000:00:04.0/0000:03:00.0/virtio7/ndbus0/region0/namespace0.0/block/pmem0", "8388608");
    Block(pci + "0000:00:04.1/0000:04:00.0/virtio8/ndbus1/region1/namespace1.0/block/pmem1", "16");
    Block(pci + "0000:00:05.0/virtio3/host0/target0:0:0/0:0:0:1/block/sda", "2048");
    Block(pci + "0000:00:05.0/virtio3/host0/target0:0:0/0:0:0:11/block/sdb", "4096");
    fs::create_directories(pci + "0000:00:05.0/virtio3/host0/scsi_host/host0");
    Write(pci + "0000:00:05.0/virtio3/host0/scsi_host/host0/scan", "");
    fs::create_directories(root_ + "/class/scsi_host");
    fs::create_directory_symlink(pci + "0000:00:05.0/virtio3/host0/scsi_host/host0",
                                 root_ + "/class/scsi_host/host0");
    fs::create_directories(root_ + "/class/virtio-ports/vport1p1");
    fs::create_directories(root_ + "/class/virtio-ports/vport1p2");
    Write(root_ + "/class/virtio-ports/vport1p1/name", "lamina.rpc\n");
    Write(root_ + "/class/virtio-ports/vport1p2/name", "lamina.stdio\n");
    fs::create_directories(root_ + "/class/net/ens3");
    Write(root_ + "/class/net/ens3/address", "02:42:0a:01:02:03\n");
    fs::create_directories(root_ + "/bus/virtio/devices/virtio3");
    Write(root_ + "/bus/virtio/devices/virtio3/modalias", "virtio:d00000008v00001AF4\n");
  }
  void TearDown() override { fs::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }
  void Block(const std::string& path, const std::string& sectors) {
    fs::create_directories(path);
    Write(path + "/size", sectors + "\n");
    fs::create_directories(root_ + "/block");
    fs::create_directory_symlink(path, root_ + "/block/" + fs::path(path).filename().string());
  }
  std::string root_;
};

TEST_F(SysfsTest, PmemIsFoundByItsSlots) {
  const Sysfs sysfs(root_);
  EXPECT_EQ(*sysfs.FindPmem("04.0/00.0"), "pmem0");
  EXPECT_EQ(*sysfs.FindPmem("04.1/00.0"), "pmem1");
  EXPECT_EQ(*sysfs.BlockSizeBytes("pmem0"), 4ULL << 30);
  EXPECT_THAT(sysfs.FindPmem("04.0/01.0"), testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_THAT(sysfs.FindPmem("06.0/00.0"), testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_THAT(sysfs.FindPmem("05.0"), testing::HasStatus(absl::StatusCode::kNotFound));
}

TEST_F(SysfsTest, ScsiDisksAreFoundByControllerTargetAndLun) {
  const Sysfs sysfs(root_);
  EXPECT_EQ(*sysfs.FindScsiDisk("05.0", 0, 1), "sda");
  EXPECT_EQ(*sysfs.FindScsiDisk("05.0", 0, 11), "sdb");
  EXPECT_THAT(sysfs.FindScsiDisk("05.0", 0, 2), testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_THAT(sysfs.FindScsiDisk("04.0/00.0", 0, 1), testing::HasStatus(absl::StatusCode::kNotFound));
}

TEST_F(SysfsTest, ScanGoesToTheControllersOwnHost) {
  const Sysfs sysfs(root_);
  ASSERT_OK(sysfs.ScanScsi("05.0", 0, 7));
  std::ifstream scan(root_ + "/class/scsi_host/host0/scan");
  std::string line;
  std::getline(scan, line);
  EXPECT_EQ(line, "0 0 7");
  EXPECT_THAT(sysfs.ScanScsi("04.0/00.0", 0, 7), testing::HasStatus(absl::StatusCode::kNotFound));
}

TEST_F(SysfsTest, PortsNetDevicesAndModaliasesAreFound) {
  const Sysfs sysfs(root_);
  EXPECT_EQ(*sysfs.FindSerialPort("lamina.stdio"), "vport1p2");
  EXPECT_THAT(sysfs.FindSerialPort("lamina"), testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_EQ(*sysfs.FindNetDevice("02:42:0a:01:02:03"), "ens3");
  EXPECT_EQ(sysfs.VirtioModaliases(), std::vector<std::string>{"virtio:d00000008v00001AF4"});
}

TEST_F(SysfsTest, DeletingADiskThatIsGoneIsFine) {
  const Sysfs sysfs(root_);
  EXPECT_OK(sysfs.DeleteScsiDisk("sdz"));
}

TEST(PciPath, OnlySlotsAndFunctionsAreTaken) {
  EXPECT_EQ(*ParsePciPath("1f.7"), std::vector<std::string>{"1f.7"});
  EXPECT_EQ(*ParsePciPath("04.0/00.0"), (std::vector<std::string>{"04.0", "00.0"}));
  for (const char* bad : {"", "/", "04.0/", "4.0", "04.8", "20.0", "04:0", "../..", "04.0//00.0", "zz.0",
                          "01.0/01.0/01.0/01.0/01.0/01.0/01.0/01.0/01.0"}) {
    EXPECT_THAT(ParsePciPath(bad), testing::HasStatus(absl::StatusCode::kInvalidArgument)) << bad;
  }
}

TEST(Uevent, VariablesAreReadFromWhatTheKernelSends) {
  const std::string text =
      "add@/devices/x\0ACTION=add\0SUBSYSTEM=virtio\0MODALIAS=virtio:d0000001Bv00001AF4\0"s;
  const auto variables = ParseUevent(text);
  EXPECT_EQ(variables.at("ACTION"), "add");
  EXPECT_EQ(variables.at("MODALIAS"), "virtio:d0000001Bv00001AF4");
  EXPECT_TRUE(ParseUevent("libudev\0ACTION=add"s).empty());
  EXPECT_TRUE(ParseUevent("").empty());
}

TEST(DeviceMonitor, AWaitEndsWithTheLastAnswerOnceTheTimeIsUp) {
  auto monitor = DeviceMonitor::Start(nullptr);
  ASSERT_OK(monitor);
  int calls = 0;
  const auto missing = (*monitor)->WaitFor(
      [&]() -> absl::StatusOr<std::string> {
        ++calls;
        return absl::NotFoundError("not there");
      },
      std::chrono::milliseconds(30));
  EXPECT_EQ(missing.status().message(), "not there");
  EXPECT_GE(calls, 2);
  const auto broken = (*monitor)->WaitFor(
      []() -> absl::StatusOr<std::string> { return absl::InternalError("broken"); }, std::chrono::hours(1));
  EXPECT_EQ(broken.status().message(), "broken");
}

}  // namespace
}  // namespace lamina::guest
