#include "guest/agent/mount_points.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::guest {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using testing::HasStatus;

class DestinationTest : public ::testing::Test {
 protected:
  void Link(const std::string& target, const std::string& path) {
    fs::create_directories(fs::path(dir_ / path).parent_path());
    fs::create_symlink(target, dir_ / path);
  }
  std::string Resolve(const std::string& destination, const std::vector<std::string>& mounted = {}) {
    const auto resolved = ResolveDestination(dir_.path(), destination, mounted);
    EXPECT_OK(resolved);
    return resolved.value_or("");
  }
  const testing::TempDir dir_;
};

TEST_F(DestinationTest, LeadsThroughLinksOfTheImage) {
  fs::create_directories(dir_ / "usr/there");
  Link("../usr/rel", "opt/rel");  // to what is not there
  Link("/usr/there", "opt/abs");
  Link("abs", "opt/twice");
  Link("../../../../..", "opt/up");
  Link("/", "opt/root");
  EXPECT_EQ(Resolve("/opt/rel"), "/usr/rel");
  EXPECT_EQ(Resolve("/opt/rel/a/b"), "/usr/rel/a/b");
  EXPECT_EQ(Resolve("/opt/abs/x"), "/usr/there/x");
  EXPECT_EQ(Resolve("/opt/twice/x"), "/usr/there/x");
  EXPECT_EQ(Resolve("/opt/up/etc"), "/etc") << "above the root there is nothing";
  EXPECT_EQ(Resolve("/opt/root/opt/rel"), "/usr/rel");
  EXPECT_EQ(Resolve("//opt/./rel//"), "/usr/rel");
  EXPECT_EQ(Resolve("/opt/rel/../x"), "/usr/x");
  EXPECT_EQ(Resolve("/new/deep"), "/new/deep");
  EXPECT_EQ(Resolve("/"), "/");
}

TEST_F(DestinationTest, WhatLiesInAnEarlierMountIsLookedUpByTheKernel) {
  Link("/elsewhere", "data/link");
  EXPECT_EQ(Resolve("/data/link/x"), "/elsewhere/x");
  EXPECT_EQ(Resolve("/data/link/x", {"/data"}), "/data/link/x") << "the mount hides the image's link";
  Link("/run", "var/run");
  EXPECT_EQ(Resolve("/var/run/secrets", {"/run"}), "/run/secrets");
}

TEST_F(DestinationTest, EndlessAndOddOnesAreErrors) {
  Link("b", "a");
  Link("a", "b");
  EXPECT_THAT(ResolveDestination(dir_.path(), "/a/x", {}), HasStatus(StatusCode::kInvalidArgument, "/a/x"));
  EXPECT_THAT(ResolveDestination(dir_.path(), "a", {}), HasStatus(StatusCode::kInvalidArgument, "absolute"));
  EXPECT_THAT(ResolveDestination(dir_.path(), "", {}), HasStatus(StatusCode::kInvalidArgument, "absolute"));
}

class PlaceMountsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    own_namespace_ = geteuid() == 0 && unshare(CLONE_NEWNS) == 0 &&
                     mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
  }
  void SetUp() override {
    if (!own_namespace_) GTEST_SKIP() << "needs root";
    fs::create_directories(dir_ / "volumes/v1/sub/deep");
    fs::create_directories(dir_ / "rootfs");
    std::ofstream(dir_ / "volumes/v1/sub/file") << "content";
  }
  void TearDown() override { EXPECT_OK(RemovePins(dir_ / "pins")); }
  absl::StatusOr<nlohmann::json> Place(const std::string& source) {
    const nlohmann::json spec = {
        {"mounts",
         {{{"destination", "/proc"}, {"type", "proc"}, {"source", "proc"}},
          {{"destination", "/data"}, {"type", "bind"}, {"source", source}, {"options", {"rbind"}}}}}};
    auto placed = PlaceMounts(spec.dump(), {dir_ / "rootfs", {dir_ / "volumes"}, dir_ / "pins"});
    if (!placed.ok()) return placed.status();
    return nlohmann::json::parse(*placed)["mounts"];
  }
  static bool own_namespace_;
  const testing::TempDir dir_;
};
bool PlaceMountsTest::own_namespace_ = false;

TEST_F(PlaceMountsTest, ASourceInsideAVolumeIsPinned) {
  auto mounts = Place(dir_ / "volumes/v1/sub");
  ASSERT_OK(mounts);
  EXPECT_EQ((*mounts)[0]["source"], "proc");
  EXPECT_EQ((*mounts)[1]["source"], dir_ / "pins/1");
  EXPECT_TRUE(fs::exists(dir_ / "pins/1/deep"));
  ASSERT_OK(RemovePins(dir_ / "pins"));
  EXPECT_FALSE(fs::exists(dir_ / "pins"));
  EXPECT_TRUE(fs::exists(dir_ / "volumes/v1/sub/deep")) << "only the mount was removed";
  mounts = Place(dir_ / "volumes/v1/sub/file");
  ASSERT_OK(mounts);
  std::string text;
  std::ifstream(dir_ / "pins/1") >> text;
  EXPECT_EQ(text, "content");
}

TEST_F(PlaceMountsTest, AWholeVolumeAndOtherSourcesStayAsTheyAre) {
  for (const std::string& source : {dir_ / "volumes/v1", dir_ / "elsewhere/a/b", std::string("/dev/shm")}) {
    const auto mounts = Place(source);
    ASSERT_OK(mounts);
    EXPECT_EQ((*mounts)[1]["source"], source);
  }
  EXPECT_FALSE(fs::exists(dir_ / "pins"));
}

TEST_F(PlaceMountsTest, ALinkThatAContainerPutInTheWayLeadsNowhere) {
  fs::create_directory_symlink("/", dir_ / "volumes/v1/root");
  fs::create_directory_symlink("sub", dir_ / "volumes/v1/inner");
  for (const char* path : {"volumes/v1/root", "volumes/v1/root/etc", "volumes/v1/inner/deep"})
    EXPECT_THAT(Place(dir_ / path), HasStatus(StatusCode::kFailedPrecondition, "in the way")) << path;
  EXPECT_THAT(Place(dir_ / "volumes/v1/../../rootfs"), HasStatus(StatusCode::kInvalidArgument, ".."));
  EXPECT_THAT(Place(dir_ / "volumes/v1/none"), HasStatus(StatusCode::kNotFound, "none"));
}

TEST_F(PlaceMountsTest, TextThatIsNoSpecIsAnError) {
  const MountPlaces places{dir_ / "rootfs", {dir_ / "volumes"}, dir_ / "pins"};
  for (const char* text : {"", "[]", "{}", R"({"mounts":1})", R"({"mounts":[1]})", R"({"mounts":[{}]})"})
    EXPECT_THAT(PlaceMounts(text, places), HasStatus(StatusCode::kInvalidArgument, "spec.mounts")) << text;
}

}  // namespace
}  // namespace lamina::guest
