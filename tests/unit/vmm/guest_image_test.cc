#include "vmm/guest_image.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/file_system.h"
#include "base/sha256.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::vmm {
namespace {

using absl::StatusCode;
using lamina::testing::HasStatus;

class GuestImageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    config_.paths.run_dir = dir_ / "run";
    config_.paths.guest_dir = dir_ / "guest";
    std::filesystem::create_directories(config_.paths.guest_dir);
    // More than is read at a time.
    kernel_.resize(300 << 10, 'k');
    Write("vmlinux", kernel_);
    Write("initramfs.img", "initramfs");
    WriteDigests(Sha256(kernel_) + "  vmlinux\n" + Sha256("initramfs") + "  initramfs.img\n");
  }
  void Write(const std::string& name, const std::string& content) {
    std::ofstream(config_.paths.guest_dir + "/" + name) << content;
  }
  void WriteDigests(const std::string& content) { Write("SHA256SUMS", content); }
  std::string Kept() { return FileSystem::Real().Read(dir_ / "run/guest-image", 4096).value_or(""); }

  lamina::testing::TempDir dir_;
  Config config_;
  std::string kernel_;
};

TEST_F(GuestImageTest, WhatTheBuildWroteIsTaken) {
  EXPECT_OK(CheckGuestImage(config_));
  const std::string kept = Kept();
  EXPECT_FALSE(kept.empty());
  EXPECT_OK(CheckGuestImage(config_));
  EXPECT_EQ(Kept(), kept);
}

TEST_F(GuestImageTest, AnotherKernelIsRefusedHoweverOftenItIsAsked) {
  ASSERT_OK(CheckGuestImage(config_));
  kernel_[100] = 'K';  // as long as before
  Write("vmlinux", kernel_);
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(CheckGuestImage(config_),
                HasStatus(StatusCode::kFailedPrecondition, "guest/vmlinux is not what its build wrote"));
    EXPECT_THAT(CheckGuestImage(config_), HasStatus(StatusCode::kFailedPrecondition, Sha256(kernel_)));
  }
  kernel_[100] = 'k';
  Write("vmlinux", kernel_);
  EXPECT_OK(CheckGuestImage(config_));
}

TEST_F(GuestImageTest, AShorterInitramfsIsRefused) {
  Write("initramfs.img", "initram");
  EXPECT_THAT(CheckGuestImage(config_),
              HasStatus(StatusCode::kFailedPrecondition, "initramfs.img is not what its build wrote"));
  EXPECT_EQ(Kept(), "");
}

TEST_F(GuestImageTest, WhatIsMissingIsNamed) {
  for (const char* name : {"vmlinux", "initramfs.img", "SHA256SUMS"}) {
    const std::string path = config_.paths.guest_dir + "/" + name;
    std::filesystem::rename(path, path + ".away");
    EXPECT_THAT(CheckGuestImage(config_), HasStatus(StatusCode::kNotFound, path));
    std::filesystem::rename(path + ".away", path);
  }
  EXPECT_OK(CheckGuestImage(config_));
}

TEST_F(GuestImageTest, AListThatIsNoneIsRefused) {
  const std::string line = Sha256(kernel_) + "  vmlinux\n";
  WriteDigests(line);
  EXPECT_THAT(CheckGuestImage(config_),
              HasStatus(StatusCode::kFailedPrecondition, "SHA256SUMS does not name initramfs.img"));
  for (const std::string& bad :
       {std::string("\n"), std::string("abc  vmlinux\n"), line.substr(0, 64) + "\n",
        line.substr(0, 66) + "\n", "X" + line.substr(1), line.substr(0, 64) + " \x1b[2J\n"}) {
    WriteDigests(bad);
    EXPECT_THAT(CheckGuestImage(config_), HasStatus(StatusCode::kFailedPrecondition, "is not a sha256"))
        << bad;
  }
  WriteDigests(std::string(1 << 20, 'a'));
  EXPECT_FALSE(CheckGuestImage(config_).ok());
}

// A file whose answer cannot be kept is a good image all the same.
TEST_F(GuestImageTest, ARunDirectoryThatCannotBeIsNoReasonToRefuse) {
  std::ofstream(dir_ / "run") << "a file";
  EXPECT_OK(CheckGuestImage(config_));
}

}  // namespace
}  // namespace lamina::vmm
