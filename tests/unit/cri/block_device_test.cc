#include "cri/block_device.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <filesystem>

#include "tests/testing/status_matchers.h"

namespace lamina::cri {
namespace {

using lamina::testing::HasStatus;

TEST(BlockDevice, IsFoundByItsNumbers) {
  for (const auto& entry : std::filesystem::directory_iterator("/sys/block")) {
    const std::string path = "/dev/" + entry.path().filename().string();
    struct stat info {};
    if (stat(path.c_str(), &info) != 0 || !S_ISBLK(info.st_mode)) continue;
    const DeviceNumber number{major(info.st_rdev), minor(info.st_rdev)};
    EXPECT_EQ(BlockDevicePath(number).value_or("error"), path);
    EXPECT_OK(BlockDeviceBytes(number));
    return;
  }
  GTEST_SKIP() << "this machine has no block device";
}

TEST(BlockDevice, SaysWhichIsMissing) {
  EXPECT_THAT(BlockDevicePath({511, 4242}),
              HasStatus(absl::StatusCode::kNotFound, "block device 511:4242: this machine has none"));
  EXPECT_THAT(OpenBlockDevice({511, 4242}, true), HasStatus(absl::StatusCode::kNotFound, "511:4242"));
  EXPECT_THAT(BlockDeviceBytes({511, 4242}), HasStatus(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace lamina::cri
