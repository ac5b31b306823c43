#include "base/trusted_folder.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina {
namespace {

using lamina::testing::HasStatus;
namespace fs = std::filesystem;

std::string PathOf(const UniqueFd& fd) {
  return fs::read_symlink("/proc/self/fd/" + std::to_string(fd.get()));
}

class TrustedFolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "who owns what matters here: only root can make it so";
    fs::create_directories(dir_ / "data/pods/a");
    fs::create_directory_symlink("data", dir_ / "relative");
    fs::create_directory_symlink(dir_ / "data/", dir_ / "absolute");
    fs::create_directory_symlink("pods/../pods/./a", dir_ / "data/chain");
  }
  const lamina::testing::TempDir dir_;
};

TEST_F(TrustedFolderTest, FollowsWhatRootHasLinked) {
  for (const char* path :
       {"data/pods/a", "data//pods/./a/", "relative/pods/a", "absolute/pods/a", "relative/chain"}) {
    const auto opened = OpenTrustedFolder(dir_ / path);
    ASSERT_OK(opened) << path;
    EXPECT_EQ(PathOf(*opened), dir_ / "data/pods/a") << path;
  }
}

TEST_F(TrustedFolderTest, RefusesALinkThatOthersCanHaveMade) {
  fs::permissions(dir_ / "data/pods", fs::perms::all);
  fs::create_directory_symlink("/etc", dir_ / "data/pods/mine");
  EXPECT_THAT(OpenTrustedFolder(dir_ / "data/pods/mine"),
              HasStatus(absl::StatusCode::kFailedPrecondition, "mine is a link that others than root"));
  EXPECT_OK(OpenTrustedFolder(dir_ / "data/pods/a")) << "a folder is no link";
  // In a folder with the sticky bit it counts whose the link is.
  fs::permissions(dir_ / "data/pods", fs::perms::all | fs::perms::sticky_bit);
  EXPECT_OK(OpenTrustedFolder(dir_ / "data/pods/mine"));
  ASSERT_EQ(lchown((dir_ / "data/pods/mine").c_str(), 1000, 1000), 0);
  EXPECT_THAT(OpenTrustedFolder(dir_ / "data/pods/mine"), HasStatus(absl::StatusCode::kFailedPrecondition));
  ASSERT_EQ(chown((dir_ / "data").c_str(), 1000, 1000), 0);
  EXPECT_THAT(OpenTrustedFolder(dir_ / "data/chain"),
              HasStatus(absl::StatusCode::kFailedPrecondition, "chain"));
}

TEST_F(TrustedFolderTest, SaysWhatIsMissing) {
  EXPECT_THAT(OpenTrustedFolder(dir_ / "data/none/a"), HasStatus(absl::StatusCode::kNotFound, "data/none/a"));
  EXPECT_THAT(OpenTrustedFolder("data"),
              HasStatus(absl::StatusCode::kInvalidArgument, "not an absolute path"));
  EXPECT_THAT(OpenTrustedFolder(""), HasStatus(absl::StatusCode::kInvalidArgument));
  std::ofstream(dir_ / "file") << "x";
  EXPECT_NOT_OK(OpenTrustedFolder(dir_ / "file"));
  fs::create_directory_symlink("loop", dir_ / "loop");
  EXPECT_THAT(OpenTrustedFolder(dir_ / "loop"), HasStatus(absl::StatusCode::kInternal, "symbolic links"));
}

}  // namespace
}  // namespace lamina
