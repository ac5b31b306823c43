#include "vmm/accel.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::vmm {
namespace {

using lamina::testing::HasStatus;

class AccelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    config_.paths.run_dir = dir_.path();
    config_.paths.guest_dir = dir_.path();
    config_.hypervisor.firmware = dir_ / "qboot";
    config_.hypervisor.qemu = dir_ / "qemu";
    config_.hypervisor.users = {};  // a script has no loader to ask for its files
    for (const char* name : {"vmlinux", "initramfs.img", "qboot"}) std::ofstream(dir_ / name) << name;
    // A QEMU that boots nothing and counts how often it is tried.
    std::ofstream(config_.hypervisor.qemu) << "#!/bin/sh\necho tried >> " << (dir_ / "tries") << "\nexit 1\n";
    ASSERT_EQ(chmod(config_.hypervisor.qemu.c_str(), 0755), 0);
  }
  std::string Choose() {
    const absl::StatusOr<Accel> accel = ChooseAccel(config_);
    return accel.ok() ? AccelName(*accel) : Message(accel.status());
  }
  int Tries() {
    std::ifstream file(dir_ / "tries");
    std::string word;
    int count = 0;
    while (file >> word) ++count;
    return count;
  }
  lamina::testing::TempDir dir_;
  Config config_;
};

TEST_F(AccelTest, AConfiguredAnswerIsNotTried) {
  config_.hypervisor.accel = "kvm";
  EXPECT_EQ(Choose(), "kvm");
  EXPECT_EQ(Tries(), 0);
  EXPECT_FALSE(std::filesystem::exists(dir_ / "accel"));
}

TEST_F(AccelTest, WhatDoesNotBootIsEmulatedAndNotTriedAgain) {
  const int tries = access("/dev/kvm", R_OK | W_OK) == 0 ? 1 : 0;
  EXPECT_EQ(Choose(), "tcg");
  EXPECT_EQ(Choose(), "tcg");
  EXPECT_EQ(Tries(), tries);
  EXPECT_FALSE(std::filesystem::exists(dir_ / "probe"));
  // Another QEMU may do better.
  std::ofstream(config_.hypervisor.qemu, std::ios::app) << "# newer\n";
  EXPECT_EQ(Choose(), "tcg");
  EXPECT_EQ(Tries(), 2 * tries);
}

TEST_F(AccelTest, TheRememberedAnswerHoldsOnlyForTheSameGuestImage) {
  ASSERT_OK(ChooseAccel(config_));
  std::string known;
  {
    std::ifstream file(dir_ / "accel");
    known.assign(std::istreambuf_iterator<char>(file), {});
  }
  ASSERT_EQ(known.rfind("tcg ", 0), 0u) << known;
  std::ofstream(dir_ / "accel", std::ios::trunc) << "kvm" << known.substr(3);
  EXPECT_EQ(Choose(), "kvm");
  std::ofstream(dir_ / "vmlinux", std::ios::app) << "changed";
  EXPECT_EQ(Choose(), "tcg");
}

TEST_F(AccelTest, AMissingFileIsNamedAndTheAnswerBeforeIsKept) {
  ASSERT_OK(ChooseAccel(config_));
  for (const char* name : {"vmlinux", "initramfs.img", "qemu"}) {
    std::filesystem::rename(dir_ / name, dir_ / "away");
    EXPECT_THAT(ChooseAccel(config_), HasStatus(absl::StatusCode::kNotFound, dir_ / name));
    std::filesystem::rename(dir_ / "away", dir_ / name);
  }
  const int tries = Tries();
  EXPECT_EQ(Choose(), "tcg");
  EXPECT_EQ(Tries(), tries);
}

}  // namespace
}  // namespace lamina::vmm
