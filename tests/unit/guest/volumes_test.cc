#include "guest/agent/volumes.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::guest {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using agent::v1::MountVolumeRequest;
using testing::HasStatus;

class VolumeTableTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    own_namespace_ = geteuid() == 0 && unshare(CLONE_NEWNS) == 0 &&
                     mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
  }
  void SetUp() override {
    if (!own_namespace_) GTEST_SKIP() << "needs root";
  }
  void TearDown() override { table_.UnmountAll(); }
  static MountVolumeRequest Memory(const std::string& name, uint64_t bytes = 1 << 20) {
    MountVolumeRequest request;
    request.set_name(name);
    request.mutable_root()->set_uid(12);
    request.mutable_root()->set_gid(34);
    request.mutable_root()->set_mode(02770);
    request.mutable_memory()->set_size_bytes(bytes);
    return request;
  }
  static void Add(MountVolumeRequest& request, const std::string& path) {
    agent::v1::Folder& folder = *request.add_folders();
    folder.set_path(path);
    folder.set_uid(5);
    folder.set_gid(6);
    folder.set_mode(03755);
  }
  static struct stat StatOf(const std::string& path) {
    struct stat info {};
    EXPECT_EQ(lstat(path.c_str(), &info), 0) << path;
    return info;
  }
  static bool own_namespace_;
  const testing::TempDir dir_;
  VolumeTable table_{dir_.path()};
};
bool VolumeTableTest::own_namespace_ = false;

TEST_F(VolumeTableTest, MemoryHasItsSizeOwnerAndMode) {
  ASSERT_OK(table_.Mount(Memory("m")));
  const std::string point = table_.MountPoint("m");
  struct statfs info {};
  ASSERT_EQ(statfs(point.c_str(), &info), 0);
  EXPECT_EQ(info.f_blocks * static_cast<uint64_t>(info.f_bsize), 1U << 20);
  EXPECT_EQ(StatOf(point).st_uid, 12U);
  EXPECT_EQ(StatOf(point).st_gid, 34U);
  EXPECT_EQ(StatOf(point).st_mode & 07777, 02770U);
  std::ofstream(point + "/kept") << "x";
  ASSERT_OK(table_.Mount(Memory("m")));
  EXPECT_TRUE(fs::exists(point + "/kept")) << "repeated, it is the same one";
  ASSERT_OK(table_.Mount(Memory("m", 2 << 20))) << "the first size holds";
  ASSERT_EQ(statfs(point.c_str(), &info), 0);
  EXPECT_EQ(info.f_blocks * static_cast<uint64_t>(info.f_bsize), 1U << 20);
  ASSERT_OK(table_.Unmount("m"));
  EXPECT_FALSE(fs::exists(point));
  EXPECT_OK(table_.Unmount("m"));
  ASSERT_OK(table_.Mount(Memory("m", 0))) << "no size: the kernel's";
}

TEST_F(VolumeTableTest, FoldersAreMadeOnceAndLeftAsTheyAre) {
  MountVolumeRequest request = Memory("m");
  Add(request, "a");
  Add(request, "a/b");
  ASSERT_OK(table_.Mount(request));
  const std::string folder = table_.MountPoint("m") + "/a/b";
  EXPECT_EQ(StatOf(folder).st_uid, 5U);
  EXPECT_EQ(StatOf(folder).st_mode & 07777, 03755U);
  ASSERT_EQ(chmod(folder.c_str(), 0700), 0);
  Add(request, "c");
  std::ofstream(table_.MountPoint("m") + "/d") << "a file";
  Add(request, "d");
  ASSERT_OK(table_.Mount(request));
  EXPECT_EQ(StatOf(folder).st_mode & 07777, 0700U);
  EXPECT_TRUE(fs::is_directory(table_.MountPoint("m") + "/c"));
  EXPECT_TRUE(fs::is_regular_file(table_.MountPoint("m") + "/d"));
}

TEST_F(VolumeTableTest, LinksOfAContainerLeadNowhere) {
  ASSERT_OK(table_.Mount(Memory("m")));
  fs::create_directories(dir_ / "outside");
  fs::create_directory_symlink(dir_ / "outside", table_.MountPoint("m") + "/link");
  MountVolumeRequest request = Memory("m");
  Add(request, "link/x");
  EXPECT_THAT(table_.Mount(request), HasStatus(StatusCode::kFailedPrecondition, "link"));
  EXPECT_TRUE(fs::is_empty(dir_ / "outside"));
}

TEST_F(VolumeTableTest, WhatCannotBeIsNamedAndLeavesNothing) {
  EXPECT_THAT(table_.Mount(Memory("../x")), HasStatus(StatusCode::kInvalidArgument, "../x"));
  MountVolumeRequest none;
  none.set_name("none");
  EXPECT_THAT(table_.Mount(none), HasStatus(StatusCode::kInvalidArgument, "volume none"));
  for (const char* path : {"", "/a", "a//b", "..", "a/../../b", "."}) {
    MountVolumeRequest request = Memory("m");
    Add(request, path);
    EXPECT_THAT(table_.Mount(request), HasStatus(StatusCode::kInvalidArgument, "volume m")) << path;
    EXPECT_FALSE(fs::exists(table_.MountPoint("m"))) << path;
  }
  MountVolumeRequest many = Memory("m");
  for (int i = 0; i <= kMaxVolumeFolders; ++i) Add(many, "a");
  EXPECT_THAT(table_.Mount(many), HasStatus(StatusCode::kInvalidArgument, "folders"));
}

TEST_F(VolumeTableTest, OneThatIsUsedStays) {
  ASSERT_OK(table_.Mount(Memory("m")));
  std::ofstream open(table_.MountPoint("m") + "/file");
  open << "x" << std::flush;
  EXPECT_NOT_OK(table_.Unmount("m"));
  EXPECT_TRUE(fs::exists(table_.MountPoint("m") + "/file"));
  open.close();
  EXPECT_OK(table_.Unmount("m"));
}

}  // namespace
}  // namespace lamina::guest
