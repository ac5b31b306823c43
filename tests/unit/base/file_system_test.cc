#include "base/file_system.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina {
namespace {

using testing::HasStatus;
using testing::TempDir;

TEST(WriteFileAtomically, ReplacesWithMode) {
  TempDir dir;
  ASSERT_OK(WriteFileAtomically(FileSystem::Real(), dir / "f", "one", 0600));
  ASSERT_OK(WriteFileAtomically(FileSystem::Real(), dir / "f", "two", 0600));
  EXPECT_EQ(*FileSystem::Real().Read(dir / "f", 100), "two");
  struct stat info {};
  ASSERT_EQ(stat((dir / "f").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  EXPECT_EQ(*FileSystem::Real().List(dir.path()), std::vector<std::string>{"f"});
}

TEST(WriteFileAtomically, EveryFaultLeavesOldOrNew) {
  for (int fail_at = 0;; ++fail_at) {
    TempDir dir;
    ASSERT_OK(WriteFileAtomically(FileSystem::Real(), dir / "f", "old", 0600));
    FaultyFileSystem faulty(FileSystem::Real());
    faulty.fail_at = fail_at;
    const absl::Status status = WriteFileAtomically(faulty, dir / "f", "new", 0600);
    if (faulty.calls <= fail_at) {
      EXPECT_OK(status);
      EXPECT_GE(fail_at, 3);
      return;
    }
    EXPECT_NOT_OK(status) << fail_at;
    const std::string content = *FileSystem::Real().Read(dir / "f", 100);
    EXPECT_TRUE(content == "old" || content == "new") << content;
    EXPECT_EQ(FileSystem::Real().List(dir.path())->size(), 1u) << "a temp file stays after fault " << fail_at;
  }
}

TEST(FileSystem, ErrorsNameThePath) {
  TempDir dir;
  FileSystem& fs = FileSystem::Real();
  EXPECT_THAT(fs.Read(dir / "none", 10), HasStatus(absl::StatusCode::kNotFound, dir / "none"));
  ASSERT_OK(fs.WriteAndSync(dir / "f", "0123456789", 0600));
  EXPECT_THAT(fs.Read(dir / "f", 9), HasStatus(absl::StatusCode::kResourceExhausted, dir / "f"));
  EXPECT_THAT(fs.MakeDirectories(dir / "f/g", 0700), HasStatus(absl::StatusCode::kInternal, dir / "f/g"));
  EXPECT_OK(fs.Remove(dir / "none"));
  EXPECT_OK(fs.RemoveTree(dir / "none"));
  ASSERT_OK(fs.MakeDirectories(dir / "a/b/c", 0700));
  EXPECT_OK(fs.MakeDirectories(dir / "a/b/c", 0700));
}

}  // namespace
}  // namespace lamina
