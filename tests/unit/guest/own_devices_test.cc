#include "guest/agent/own_devices.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::guest {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;

std::vector<std::string> PathsOf(const std::vector<OwnDevice>& devices) {
  std::vector<std::string> paths;
  for (const OwnDevice& device : devices) paths.push_back(device.path);
  return paths;
}

TEST(OwnDevicesTest, TheGuestsNodesWithoutWhatEachContainerHas) {
  const testing::TempDir dir;
  for (const char* folder : {"pts", "shm", "mapper", "deep/deeper"}) fs::create_directories(dir / folder);
  const auto node = [&](const char* path, mode_t type, unsigned major, unsigned minor) {
    return mknod((dir / path).c_str(), type | 0640, makedev(major, minor)) == 0;
  };
  if (!node("vda", S_IFBLK, 254, 0)) GTEST_SKIP() << "device nodes cannot be made here";
  ASSERT_TRUE(node("kmsg", S_IFCHR, 1, 11));
  ASSERT_TRUE(node("console", S_IFCHR, 5, 1));
  ASSERT_TRUE(node("pts/0", S_IFCHR, 136, 0));
  ASSERT_TRUE(node("deep/deeper/node", S_IFCHR, 10, 200));
  std::ofstream(dir / "file") << "no device";
  fs::create_symlink("vda", dir / "link");
  const auto devices = OwnDevices(dir.path());
  ASSERT_OK(devices);
  EXPECT_THAT(PathsOf(*devices), ElementsAre("/dev/deep/deeper/node", "/dev/kmsg", "/dev/vda"));
  EXPECT_FALSE((*devices)[1].block);
  const OwnDevice& disk = (*devices)[2];
  EXPECT_TRUE(disk.block);
  EXPECT_EQ(disk.major, 254U);
  EXPECT_EQ(disk.minor, 0U);
  EXPECT_EQ(disk.mode, 0640U);
}

TEST(OwnDevicesTest, AFolderThatIsNotThereIsNamed) {
  const testing::TempDir dir;
  EXPECT_THAT(OwnDevices(dir / "none"), testing::HasStatus(absl::StatusCode::kNotFound, dir / "none"));
}

}  // namespace
}  // namespace lamina::guest
