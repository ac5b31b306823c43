#include "cri/disk_image.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/subprocess.h"
#include "base/units.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

using lamina::testing::HasStatus;
namespace fs = std::filesystem;

// What dumpe2fs -h says after "name:".
std::string Superblock(const std::string& image, const std::string& name) {
  const auto result = RunCommand({"/sbin/dumpe2fs", "-h", image}, std::chrono::seconds(10));
  if (!result.ok()) return result.status().ToString();
  const size_t at = result->output.find("\n" + name + ":");
  if (at == std::string::npos) return "no " + name + " in " + result->output;
  const size_t begin = result->output.find_first_not_of(' ', at + name.size() + 2);
  return result->output.substr(begin, result->output.find('\n', begin) - begin);
}

struct stat Stat(const std::string& path) {
  struct stat info {};
  EXPECT_EQ(lstat(path.c_str(), &info), 0) << path;
  return info;
}

TEST(DiskImage, IsAnEmptyFileSystemOfHoles) {
  const lamina::testing::TempDir dir;
  const std::string image = dir / kRootImage;
  const auto bytes = MakeDiskImage(image, {.bytes = 10 * kGiB});
  ASSERT_OK(bytes);
  EXPECT_EQ(*bytes, 10 * kGiB);
  const struct stat info = Stat(image);
  EXPECT_EQ(info.st_size, static_cast<off_t>(10 * kGiB));
  EXPECT_EQ(info.st_mode, S_IFREG | 0600U);
  EXPECT_LT(info.st_blocks * 512, static_cast<off_t>(512 * kKiB));
  EXPECT_THAT(Superblock(image, "Filesystem features"), ::testing::Not(::testing::HasSubstr("has_journal")));
  EXPECT_EQ(Superblock(image, "Reserved block count"), "0");
  EXPECT_EQ(Superblock(image, "Block size"), "4096");
  EXPECT_EQ(Superblock(image, "Inode count"), std::to_string(10 * kGiB / 16384));
  EXPECT_OK(RunChecked({"/sbin/e2fsck", "-f", "-n", image}, std::chrono::seconds(60)));
  EXPECT_EQ(std::distance(fs::directory_iterator(dir.path()), fs::directory_iterator()), 1)
      << "nothing else is left in the folder";
}

TEST(DiskImage, WithAJournalForWhatOutlivesItsVm) {
  const lamina::testing::TempDir dir;
  const std::string image = dir / kVolumeImage;
  ASSERT_OK(MakeDiskImage(image, {.bytes = kGiB, .journal = true, .keep = true}));
  EXPECT_THAT(Superblock(image, "Filesystem features"), ::testing::HasSubstr("has_journal"));
  EXPECT_LT(Stat(image).st_blocks * 512, static_cast<off_t>(512 * kKiB));
  const ino_t inode = Stat(image).st_ino;
  // Made again, with whatever size: it is the one that is there.
  EXPECT_EQ(MakeDiskImage(image, {.bytes = 2 * kGiB, .journal = true, .keep = true}).value_or(0), kGiB);
  EXPECT_EQ(Stat(image).st_ino, inode);
  ASSERT_OK(MakeDiskImage(image, {.bytes = 2 * kGiB}));
  EXPECT_NE(Stat(image).st_ino, inode);
  EXPECT_EQ(Stat(image).st_size, static_cast<off_t>(2 * kGiB));
}

TEST(DiskImage, OfTheLeastSizeAndOfTheLargest) {
  const lamina::testing::TempDir dir;
  ASSERT_OK(MakeDiskImage(dir / "least", {.bytes = 64 * kMiB}));
  EXPECT_OK(RunChecked({"/sbin/e2fsck", "-f", "-n", dir / "least"}, std::chrono::seconds(60)));
  for (const uint64_t bytes : {uint64_t{0}, 64 * kMiB - 1, 9 * kTiB}) {
    EXPECT_THAT(MakeDiskImage(dir / "wrong", {.bytes = bytes}),
                HasStatus(absl::StatusCode::kInvalidArgument, FormatBytes(bytes)));
  }
  EXPECT_FALSE(fs::exists(dir / "wrong"));
  // Whatever is asked for, no more than is free is promised.
  const auto huge = MakeDiskImage(dir / "huge", {.bytes = 8 * kTiB});
  ASSERT_OK(huge);
  EXPECT_LE(*huge, fs::space(dir.path()).capacity);
}

TEST(DiskImage, ReplacesWhatAnAbortedMakeLeft) {
  const lamina::testing::TempDir dir;
  const std::string image = dir / kRootImage;
  std::ofstream(image + ".new") << "half";
  ASSERT_OK(MakeDiskImage(image, {.bytes = 64 * kMiB}));
  EXPECT_FALSE(fs::exists(image + ".new"));
  std::ofstream(image + ".new") << "half";
  EXPECT_OK(RemoveDiskImage(image));
  EXPECT_TRUE(fs::is_empty(dir.path()));
  EXPECT_OK(RemoveDiskImage(image));
  EXPECT_OK(RemoveDiskImage(dir / "no/such/folder"));
}

TEST(DiskImage, FollowsNoLink) {
  const lamina::testing::TempDir dir;
  std::ofstream(dir / "victim") << "precious";
  fs::create_symlink(dir / "victim", dir / kRootImage);
  EXPECT_THAT(OpenDiskImage(dir / kRootImage),
              HasStatus(absl::StatusCode::kFailedPrecondition, "is no file"));
  EXPECT_THAT(MakeDiskImage(dir / kRootImage, {.bytes = 64 * kMiB, .keep = true}),
              HasStatus(absl::StatusCode::kFailedPrecondition, "is no file"));
  fs::create_symlink(dir / "victim", dir / (std::string(kRootImage) + ".new"));
  ASSERT_OK(MakeDiskImage(dir / kRootImage, {.bytes = 64 * kMiB}));
  EXPECT_EQ(fs::file_size(dir / "victim"), 8U) << "the link is replaced, what it named is not touched";
  EXPECT_OK(OpenDiskImage(dir / kRootImage));
  EXPECT_THAT(OpenDiskImage(dir / "none"), HasStatus(absl::StatusCode::kNotFound, "none"));
  EXPECT_THAT(OpenDiskImage(dir.path() + "/"), HasStatus(absl::StatusCode::kInvalidArgument));
  ASSERT_EQ(mkfifo((dir / "fifo").c_str(), 0600), 0);
  EXPECT_THAT(OpenDiskImage(dir / "fifo"), HasStatus(absl::StatusCode::kFailedPrecondition));
}

}  // namespace
}  // namespace lamina::cri
