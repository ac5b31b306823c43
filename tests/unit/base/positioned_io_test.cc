#include "base/positioned_io.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/file_system.h"
#include "base/unique_fd.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina {
namespace {

using testing::HasStatus;

TEST(PositionedIo, WritesAndReadsAtAnOffsetAndMovesNoPosition) {
  testing::TempDir dir;
  const std::string path = dir / "file";
  const UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_OK(WriteAt(fd.get(), path, 3, "abc", 3));
  ASSERT_OK(WriteAt(fd.get(), path, 1, "xy", 2));
  ASSERT_OK(WriteAt(fd.get(), path, 100, nullptr, 0));
  EXPECT_EQ(lseek(fd.get(), 0, SEEK_CUR), 0);
  EXPECT_EQ(*FileSystem::Real().Read(path, 100), std::string("\0xyabc", 6));
  std::string read(3, '-');
  ASSERT_OK(ReadAt(fd.get(), path, 2, read.data(), read.size()));
  EXPECT_EQ(read, "yab");
  ASSERT_OK(ReadAt(fd.get(), path, 100, nullptr, 0));
}

TEST(PositionedIo, AFileThatEndsEarlierIsDataLossAndSaysHowMuchIsMissing) {
  testing::TempDir dir;
  const std::string path = dir / "file";
  const UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_OK(WriteAt(fd.get(), path, 0, "abc", 3));
  char read[4];
  EXPECT_THAT(ReadAt(fd.get(), path, 1, read, 4),
              HasStatus(absl::StatusCode::kDataLoss, path + ": ends 2 bytes too early"));
}

TEST(PositionedIo, ErrorsNameThePath) {
  const UniqueFd zero(open("/dev/null", O_RDONLY | O_CLOEXEC)), full(open("/dev/full", O_WRONLY | O_CLOEXEC));
  EXPECT_THAT(WriteAt(zero.get(), "/x/read-only", 0, "a", 1),
              HasStatus(absl::StatusCode::kInternal, "write /x/read-only"));
  EXPECT_THAT(WriteAt(full.get(), "/x/full", 0, "a", 1),
              HasStatus(absl::StatusCode::kResourceExhausted, "write /x/full"));
  char read = 0;
  EXPECT_THAT(ReadAt(full.get(), "/x/write-only", 0, &read, 1),
              HasStatus(absl::StatusCode::kInternal, "read /x/write-only"));
}

}  // namespace
}  // namespace lamina
