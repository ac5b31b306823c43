#include "cri/volumes.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/file_system.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using testing::HasStatus;

std::string ReadAll(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

int MountsNamed(const std::string& text) {
  int count = 0;
  std::ifstream in("/proc/self/mountinfo");
  for (std::string line; std::getline(in, line);) count += line.find(text) != std::string::npos ? 1 : 0;
  return count;
}

// Mounts are made in a mount namespace of this program's own.
class VolumesTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    own_namespace_ = geteuid() == 0 && unshare(CLONE_NEWNS) == 0 &&
                     mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
  }
  void SetUp() override {
    if (!own_namespace_) GTEST_SKIP() << "needs root";
    ASSERT_OK(MakeSharedDir(shared_));
    fs::create_directories(source_);
    std::ofstream(source_ + "/file") << "content";
  }
  void TearDown() override {
    EXPECT_OK(UnmountTree(shared_));
    EXPECT_EQ(MountsNamed(dir_.path()), 0);
  }
  // The host's tree as systemd leaves it: what is mounted there is told to every copy.
  void MountSharedTmpfs(const std::string& at) {
    fs::create_directories(at);
    ASSERT_EQ(mount("none", at.c_str(), "tmpfs", 0, nullptr), 0);
    ASSERT_EQ(mount(nullptr, at.c_str(), nullptr, MS_SHARED, nullptr), 0);
  }

  static bool own_namespace_;
  testing::TempDir dir_;
  std::string shared_ = dir_ / "shared", source_ = dir_ / "source";
};
bool VolumesTest::own_namespace_ = false;

TEST_F(VolumesTest, FoldersAndFilesAppear) {
  EXPECT_OK(MakeSharedDir(shared_)) << "again";
  ASSERT_OK(BindVolume(shared_, "dir", source_, {}));
  ASSERT_OK(BindVolume(shared_, "file", source_ + "/file", {}));
  EXPECT_EQ(ReadAll(shared_ + "/dir/file"), "content");
  EXPECT_EQ(ReadAll(shared_ + "/file"), "content");
  std::ofstream(shared_ + "/dir/new") << "x";
  EXPECT_EQ(ReadAll(source_ + "/new"), "x");
  EXPECT_OK(UnbindVolume(shared_, "dir"));
  EXPECT_OK(UnbindVolume(shared_, "dir")) << "again";
  EXPECT_OK(UnbindVolume(shared_, "file"));
  EXPECT_TRUE(fs::is_empty(shared_));
  EXPECT_EQ(ReadAll(source_ + "/file"), "content") << "the source stays";
}

// Who left the namespace before a volume was bound, as virtiofsd, sees it all the same, and changes nothing
// here.
TEST_F(VolumesTest, VolumesReachANamespaceThatWasThereBefore) {
  const std::string at = shared_ + "/v/file";
  int to[2], from[2];
  ASSERT_EQ(pipe2(to, O_CLOEXEC), 0);
  ASSERT_EQ(pipe2(from, O_CLOEXEC), 0);
  const pid_t pid = fork();
  if (pid == 0) {
    char byte = unshare(CLONE_NEWNS) == 0 && mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) == 0;
    const auto turn = [&] { return write(from[1], &byte, 1) == 1 && read(to[0], &byte, 1) == 1; };
    if (!turn()) _exit(1);
    byte = access(at.c_str(), F_OK) == 0;
    if (!turn()) _exit(1);
    byte = access(at.c_str(), F_OK) != 0 && umount2(shared_.c_str(), MNT_DETACH) == 0;
    turn();
    _exit(0);
  }
  char said = 0;
  ASSERT_EQ(read(from[0], &said, 1), 1);
  ASSERT_EQ(said, 1) << "it has a namespace of its own";
  EXPECT_OK(BindVolume(shared_, "v", source_, {}));
  ASSERT_EQ(write(to[1], "", 1), 1);
  ASSERT_EQ(read(from[0], &said, 1), 1);
  EXPECT_EQ(said, 1) << "it sees the volume";
  EXPECT_OK(UnbindVolume(shared_, "v"));
  ASSERT_EQ(write(to[1], "", 1), 1);
  ASSERT_EQ(read(from[0], &said, 1), 1);
  EXPECT_EQ(said, 1) << "it sees that the volume is gone, and leaves the share";
  EXPECT_EQ(MountsNamed(shared_), 1) << "which is here as before";
  ASSERT_EQ(write(to[1], "", 1), 1);
  EXPECT_EQ(waitpid(pid, nullptr, 0), pid);
}

TEST_F(VolumesTest, DeviceNodesAndSetuidFilesAreNothingSpecialInAVolume) {
  fs::create_directories(source_ + "/below");
  ASSERT_EQ(mount("none", (source_ + "/below").c_str(), "tmpfs", 0, nullptr), 0);
  for (const char* node : {"/null", "/below/null"})
    ASSERT_EQ(mknod((source_ + node).c_str(), S_IFCHR | 0666, makedev(1, 3)), 0);
  for (const bool read_only : {false, true}) {
    ASSERT_OK(BindVolume(shared_, "v", source_, {.read_only = read_only}));
    for (const char* place : {"/v", "/v/below"}) {
      EXPECT_EQ(open((shared_ + place + "/null").c_str(), O_RDONLY | O_CLOEXEC), -1) << place;
      EXPECT_EQ(errno, EACCES) << place;
      struct statvfs info {};
      ASSERT_EQ(statvfs((shared_ + place).c_str(), &info), 0);
      EXPECT_EQ(info.f_flag & (ST_NOSUID | ST_NODEV), unsigned{ST_NOSUID | ST_NODEV}) << place;
    }
    EXPECT_OK(UnbindVolume(shared_, "v"));
  }
  EXPECT_EQ(umount2((source_ + "/below").c_str(), MNT_DETACH), 0);
}

TEST_F(VolumesTest, NobodyCanWriteIntoTheShareItself) {
  ASSERT_OK(BindVolume(shared_, "v", source_, {}));
  // What a guest would do: fill the host's memory, or put a link where the next mount point will be.
  EXPECT_EQ(open((shared_ + "/junk").c_str(), O_WRONLY | O_CREAT, 0600), -1);
  EXPECT_EQ(errno, EROFS);
  EXPECT_EQ(symlink("/etc", (shared_ + "/next").c_str()), -1);
  EXPECT_EQ(errno, EROFS);
  EXPECT_EQ(rename((shared_ + "/v/file").c_str(), (shared_ + "/file").c_str()), -1);
}

TEST_F(VolumesTest, ALinkInAMountPointsWayIsNotFollowed) {
  const std::string victim = dir_ / "victim";
  fs::create_directories(victim);
  std::ofstream(victim + "/mine") << "x";
  fs::create_symlink(victim, shared_ + ".points/v");
  EXPECT_NOT_OK(BindVolume(shared_, "v", source_ + "/file", {}));
  BindVolume(shared_, "v", source_, {}).IgnoreError();
  EXPECT_EQ(ReadAll(victim + "/mine"), "x");
  EXPECT_EQ(MountsNamed(victim), 0);
}

TEST_F(VolumesTest, RecursivelyReadOnlyHoldsForAllThatIsMountedBelow) {
  fs::create_directories(source_ + "/below");
  ASSERT_EQ(mount("none", (source_ + "/below").c_str(), "tmpfs", 0, nullptr), 0);
  ASSERT_OK(BindVolume(shared_, "v", source_, {.read_only = true, .recursive_read_only = true}));
  for (const char* file : {"/v/x", "/v/below/x"}) {
    EXPECT_EQ(open((shared_ + file).c_str(), O_WRONLY | O_CREAT, 0600), -1) << file;
    EXPECT_EQ(errno, EROFS) << file;
  }
  std::ofstream(source_ + "/below/host") << "the host still may";
  EXPECT_EQ(ReadAll(shared_ + "/v/below/host"), "the host still may");
  EXPECT_OK(UnbindVolume(shared_, "v"));
  EXPECT_EQ(umount((source_ + "/below").c_str()), 0);
}

TEST_F(VolumesTest, RemovingAVolumeUnmountsNothingOfTheHosts) {
  MountSharedTmpfs(source_);
  MountSharedTmpfs(source_ + "/below");
  std::ofstream(source_ + "/below/data") << "kept";
  for (const bool follows : {false, true}) {
    ASSERT_OK(BindVolume(shared_, "v", source_, {.follows_host = follows}));
    EXPECT_EQ(ReadAll(shared_ + "/v/below/data"), "kept");
    ASSERT_OK(UnbindVolume(shared_, "v"));
    EXPECT_EQ(ReadAll(source_ + "/below/data"), "kept");
    ASSERT_OK(BindVolume(shared_, "v", source_, {.follows_host = follows}));
    ASSERT_OK(UnmountTree(shared_)) << "as a clean-up does";
    EXPECT_EQ(ReadAll(source_ + "/below/data"), "kept");
    ASSERT_OK(MakeSharedDir(shared_));
  }
  EXPECT_EQ(umount((source_ + "/below").c_str()), 0);
  EXPECT_EQ(umount(source_.c_str()), 0);
}

TEST_F(VolumesTest, LaterMountsOfTheHostAppearOnlyWhereAskedFor) {
  MountSharedTmpfs(source_);
  fs::create_directories(source_ + "/later");
  ASSERT_OK(BindVolume(shared_, "own", source_, {}));
  ASSERT_OK(BindVolume(shared_, "follows", source_, {.follows_host = true}));
  ASSERT_EQ(mount("none", (source_ + "/later").c_str(), "tmpfs", 0, nullptr), 0);
  std::ofstream(source_ + "/later/x") << "x";
  EXPECT_EQ(ReadAll(shared_ + "/follows/later/x"), "x");
  EXPECT_FALSE(fs::exists(shared_ + "/own/later/x"));
  ASSERT_OK(UnbindVolume(shared_, "follows"));
  ASSERT_OK(UnbindVolume(shared_, "own"));
  EXPECT_EQ(umount((source_ + "/later").c_str()), 0);
  EXPECT_EQ(umount(source_.c_str()), 0);
}

TEST_F(VolumesTest, AMissingSourceIsNamedAndLeavesNothing) {
  EXPECT_THAT(BindVolume(shared_, "v", source_ + "/none", {}),
              HasStatus(StatusCode::kNotFound, source_ + "/none"));
  EXPECT_TRUE(fs::is_empty(shared_));
  fs::create_symlink("nowhere", source_ + "/dangling");
  EXPECT_THAT(BindVolume(shared_, "v", source_ + "/dangling", {}),
              HasStatus(StatusCode::kNotFound, "dangling"));
  // A point of the wrong kind is in the way.
  fs::create_directories(shared_ + ".points/file");
  EXPECT_THAT(BindVolume(shared_, "file", source_ + "/file", {}), HasStatus(StatusCode::kInternal, "file"));
}

TEST_F(VolumesTest, OddNamesAndStackedMountsAreUnmounted) {
  const std::string odd = source_ + "/a b\t\\c\n";
  fs::create_directories(odd);
  ASSERT_EQ(mount("none", odd.c_str(), "tmpfs", 0, nullptr), 0);
  ASSERT_EQ(mount("none", odd.c_str(), "tmpfs", 0, nullptr), 0);
  ASSERT_OK(BindVolume(shared_, "v", source_, {}));
  ASSERT_OK(BindVolume(shared_, "v", source_, {}));
  EXPECT_OK(UnbindVolume(shared_, "v"));
  EXPECT_TRUE(fs::is_empty(shared_));
  EXPECT_OK(UnmountTree(source_));
  EXPECT_EQ(MountsNamed(source_), 0);
  EXPECT_OK(UnmountTree(dir_ / "never"));
}

// As with a kernel of one's own: what is mounted below a read-only mount is not.
TEST_F(VolumesTest, ReadOnlyReachesBelowOnlyWhenAsked) {
  const std::string below = source_ + "/below";
  fs::create_directories(below);
  ASSERT_EQ(mount("none", below.c_str(), "tmpfs", 0, nullptr), 0);
  ASSERT_OK(BindVolume(shared_, "top", source_, {.read_only = true}));
  ASSERT_OK(BindVolume(shared_, "all", source_, {.read_only = true, .recursive_read_only = true}));
  const auto writes = [&](const std::string& path) {
    std::ofstream file(shared_ + "/" + path);
    return static_cast<bool>(file << "x" << std::flush);
  };
  EXPECT_FALSE(writes("top/new"));
  EXPECT_TRUE(writes("top/below/new"));
  EXPECT_FALSE(writes("all/new"));
  EXPECT_FALSE(writes("all/below/new"));
  // A container came that writes.
  ASSERT_OK(LetWrite(shared_, "top", 0));
  EXPECT_TRUE(writes("top/new"));
  EXPECT_THAT(LetWrite(shared_, "none", 0), HasStatus(StatusCode::kNotFound, "none"));
  for (const char* name : {"top", "all"}) ASSERT_OK(UnbindVolume(shared_, name));
  EXPECT_EQ(umount(below.c_str()), 0);
}

}  // namespace
}  // namespace lamina::cri
