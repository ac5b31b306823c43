#include "cri/cgroup.h"

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "base/file_system.h"
#include "base/process.h"
#include "base/subprocess.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasStatus;

TEST(CgroupPath, PlainPathsStayAndSystemdsAreExpanded) {
  const std::pair<const char*, const char*> cases[] = {
      {"/kubepods/burstable/pod1/abc", "/kubepods/burstable/pod1/abc"},
      {"default/abc", "/default/abc"},
      {"kubepods-burstable-pod1.slice:cri-containerd:abc",
       "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope"},
      {"system.slice:runc:abc", "/system.slice/runc-abc.scope"},
      {":runc:abc", "/system.slice/runc-abc.scope"},
      {"a.slice::abc", "/a.slice/abc.scope"},
      {"-.slice:p:abc", "/p-abc.scope"},
      {"a.slice:p:b:c", "/a.slice/p-b:c.scope"},
      {"/a:b", "/a:b"},
  };
  for (const auto& [in, out] : cases) EXPECT_EQ(CgroupPath(in).value_or("?"), out) << in;
}

TEST(CgroupPath, NothingLeadsUpOrToTheRoot) {
  for (const char* bad : {"", "/", "..", "/..", "/a/../b", "/a/./b", "/a//b", "/a/", "../a:b:c",
                          "a:b:../../c", "a:../b:c", "..:p:n"}) {
    const auto path = CgroupPath(bad);
    EXPECT_THAT(path, HasStatus(StatusCode::kInvalidArgument, "cgroupsPath"))
        << bad << ": " << path.value_or("");
  }
}

// A cgroup hierarchy of this machine's in which we may make directories; empty: none.
std::string WritableHierarchy() {
  for (const char* root : {"/sys/fs/cgroup/pids", "/sys/fs/cgroup/freezer", "/sys/fs/cgroup"}) {
    const std::string probe = fmt::format("{}/lamina-probe-{}", root, getpid());
    if (std::filesystem::exists(std::string(root) + "/cgroup.procs") && mkdir(probe.c_str(), 0755) == 0) {
      rmdir(probe.c_str());
      return root;
    }
  }
  return "";
}

class HostCgroupTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0 || WritableHierarchy().empty()) GTEST_SKIP() << "needs root and a writable cgroup";
    path_ = fmt::format("/lamina-test-{}/pod", getpid());
  }
  void TearDown() override {
    for (const std::string& dir : made_.dirs) {
      EXPECT_FALSE(std::filesystem::exists(dir)) << dir;
      rmdir(dir.c_str());
      rmdir(dir.substr(0, dir.rfind('/')).c_str());
    }
  }
  std::string path_;
  HostCgroup made_;
};

TEST_F(HostCgroupTest, IsMadeInEveryHierarchyAndEndedWithWhatRunsThere) {
  auto made = MakeHostCgroup("/sys/fs/cgroup", path_);
  ASSERT_OK(made.status());
  made_ = *made;
  ASSERT_FALSE(made_.dirs.empty());
  EXPECT_EQ(made_.procs_files().size(), made_.dirs.size());
  auto again = MakeHostCgroup("/sys/fs/cgroup", path_);
  ASSERT_OK(again.status());
  EXPECT_EQ(again->dirs, made_.dirs);

  SpawnOptions options;
  options.argv = {"sh", "-c", "trap '' TERM INT HUP; sleep 1000 & sleep 1000 & wait; sleep 1000"};
  options.cgroup_procs_files = made_.procs_files();
  const auto pid = Spawn(options);
  ASSERT_OK(pid.status());
  const uint64_t start = ProcessStartTime(*pid).value_or(0);
  EXPECT_TRUE(ProcessAlive(*pid, start));
  EXPECT_OK(RemoveHostCgroup(made_.dirs, seconds(30)));
  EXPECT_FALSE(ProcessAlive(*pid, start));
  waitpid(*pid, nullptr, 0);
  EXPECT_OK(RemoveHostCgroup(made_.dirs, milliseconds(0))) << "gone already";
}

TEST_F(HostCgroupTest, WhatCannotBeRemovedIsNamedAndTheRestGoes) {
  auto made = MakeHostCgroup("/sys/fs/cgroup", path_);
  ASSERT_OK(made.status());
  made_ = *made;
  const std::string below = made_.dirs[0] + "/below";
  ASSERT_EQ(mkdir(below.c_str(), 0755), 0);
  EXPECT_THAT(RemoveHostCgroup(made_.dirs, milliseconds(20)),
              HasStatus(StatusCode::kDeadlineExceeded, made_.dirs[0]));
  for (size_t i = 1; i < made_.dirs.size(); ++i) EXPECT_FALSE(std::filesystem::exists(made_.dirs[i]));
  ASSERT_EQ(rmdir(below.c_str()), 0);
  EXPECT_OK(RemoveHostCgroup(made_.dirs, seconds(5)));
}

TEST(HostCgroup, AFolderThatIsNoHierarchyHasNone) {
  const testing::TempDir dir;
  std::filesystem::create_directories(dir / "plain");
  std::filesystem::create_symlink("/sys/fs/cgroup", dir / "link");
  const auto made = MakeHostCgroup(dir.path(), "/x");
  ASSERT_OK(made.status());
  EXPECT_TRUE(made->dirs.empty());
}

TEST(HostCgroup, AFailureUndoesWhatWasMade) {
  // Two things that look like hierarchies; in the second a file is in the way.
  const testing::TempDir dir;
  for (const char* name : {"a", "b"}) {
    std::filesystem::create_directories(dir / name);
    ASSERT_OK(FileSystem::Real().WriteAndSync(dir / name + "/cgroup.procs", "", 0644));
  }
  ASSERT_OK(FileSystem::Real().WriteAndSync(dir / "b/pod", "", 0644));
  EXPECT_THAT(MakeHostCgroup(dir.path(), "/pod/x"), HasStatus(StatusCode::kInternal, "b/pod/x"));
  EXPECT_FALSE(std::filesystem::exists(dir / "a/pod/x"));
}

}  // namespace
}  // namespace lamina::cri
