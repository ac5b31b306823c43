#include "cri/volume_kind.h"

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/unix_socket.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

namespace fs = std::filesystem;
using What = KubeletPath::What;

std::vector<MountEntry> Table(std::initializer_list<std::array<const char*, 4>> lines) {
  std::vector<MountEntry> mounts;
  for (const auto& [device, root, point, type] : lines) mounts.push_back({device, root, point, type, "none"});
  return mounts;
}

TEST(PlaceOfTest, AFileHasOnePlaceWhateverItIsCalled) {
  const auto mounts = Table({{"8:1", "/", "/", "ext4"},
                             {"8:2", "/", "/var", "ext4"},
                             {"8:2", "/lib/data", "/srv", "ext4"},
                             {"0:9", "/", "/srv/sub", "tmpfs"},
                             {"0:8", "/", "/over", "tmpfs"},
                             {"8:2", "/x", "/over", "ext4"}});
  const auto at = [&](const char* path) {
    const auto place = PlaceOf(mounts, path);
    return place ? place->device + " " + place->path : "none";
  };
  EXPECT_EQ(at("/"), "8:1 /");
  EXPECT_EQ(at("/home/a"), "8:1 /home/a");
  EXPECT_EQ(at("/variable"), "8:1 /variable") << "/var is another folder";
  EXPECT_EQ(at("/var"), "8:2 /");
  EXPECT_EQ(at("/var/lib/data/f"), "8:2 /lib/data/f");
  EXPECT_EQ(at("/srv/f"), "8:2 /lib/data/f");
  EXPECT_EQ(at("/srv"), "8:2 /lib/data");
  EXPECT_EQ(at("/srv/sub/f"), "0:9 /f");
  EXPECT_EQ(at("/over/f"), "8:2 /x/f") << "the last one at a point is seen";
  EXPECT_EQ(at(""), "none");
  EXPECT_FALSE(PlaceOf({}, "/a"));
}

TEST(KubeletPathTest, IsTakenApart) {
  const auto volume = ParseKubeletPath("/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~configmap/app/a/b");
  ASSERT_TRUE(volume);
  EXPECT_EQ(volume->what, What::kVolume);
  EXPECT_EQ(volume->pod_dir, "/var/lib/kubelet/pods/u-1");
  EXPECT_EQ(volume->plugin, "configmap");
  EXPECT_EQ(volume->name, "app");
  EXPECT_EQ(volume->rest, "a/b");
  const auto sub = ParseKubeletPath("/k/pods/u/volume-subpaths/data/main/0");
  ASSERT_TRUE(sub);
  EXPECT_EQ(sub->what, What::kSubPath);
  EXPECT_EQ(sub->name, "data");
  EXPECT_EQ(ParseKubeletPath("/k/pods/u/etc-hosts")->what, What::kHosts);
  EXPECT_EQ(ParseKubeletPath("/k/pods/u/containers/main/0a1b")->what, What::kTerminationLog);
  // The kubelet's root may lie in a folder called pods.
  EXPECT_EQ(ParseKubeletPath("/pods/x/kubelet/pods/u/etc-hosts")->pod_dir, "/pods/x/kubelet/pods/u");
}

TEST(KubeletPathTest, OtherPathsAreNone) {
  for (const char* path :
       {"", "/", "/pods", "/pods/", "/pods/u", "/pods/u/etc-hosts/x", "/pods//etc-hosts", "/pods/u/volumes",
        "/pods/u/volumes/kubernetes.io~secret", "/pods/u/volumes/other~secret/a",
        "/pods/u/volume-subpaths/a/b", "/pods/u/containers/main", "/pods/u/containers/main/a/b",
        "/xpods/u/etc-hosts", "/pods/u/plugins/x/y"}) {
    EXPECT_FALSE(ParseKubeletPath(path)) << path;
  }
}

class SortVolumeTest : public ::testing::Test {
 protected:
  std::string Folder(const std::string& path) {
    fs::create_directories(dir_ / path);
    return dir_ / path;
  }
  std::string File(const std::string& path) {
    fs::create_directories((dir_ / path).substr(0, (dir_ / path).rfind('/')));
    std::ofstream(dir_ / path) << "x";
    return dir_ / path;
  }
  VolumeKind KindOf(const std::string& path) {
    const auto sorted = SortVolume(path, mounts_);
    EXPECT_OK(sorted);
    return sorted.ok() ? sorted->kind : VolumeKind::kShared;
  }
  const testing::TempDir dir_;
  std::vector<MountEntry> mounts_ = {{"8:1", "/", "/", "ext4", "none"}};
};

TEST_F(SortVolumeTest, EachIsSortedByItsNature) {
  const std::string pod = "kubelet/pods/uid/", volumes = pod + "volumes/kubernetes.io~";
  EXPECT_EQ(KindOf(Folder("any")), VolumeKind::kShared);
  EXPECT_EQ(KindOf("/dev/null"), VolumeKind::kShared);
  EXPECT_EQ(KindOf(Folder(volumes + "csi/x/mount")), VolumeKind::kShared);
  EXPECT_EQ(KindOf(Folder(volumes + "empty-dir/disk")), VolumeKind::kDisk);
  for (const char* plugin : {"configmap", "secret", "projected", "downward-api"})
    EXPECT_EQ(KindOf(Folder(volumes + plugin + "/x")), VolumeKind::kFiles) << plugin;
  EXPECT_EQ(KindOf(File(volumes + "configmap/x/one/file")), VolumeKind::kFiles);
  EXPECT_EQ(KindOf(File(pod + "etc-hosts")), VolumeKind::kFiles);
  EXPECT_EQ(KindOf(File(pod + "containers/main/0123abcd")), VolumeKind::kTerminationLog);
  for (const char* name : {"hostname", "hosts", "resolv.conf"})
    EXPECT_EQ(KindOf(File(std::string("sandboxes/0a/") + name)), VolumeKind::kFiles) << name;
  EXPECT_EQ(KindOf(Folder("sandboxes/0a/shm")), VolumeKind::kPodShm);
  EXPECT_EQ(KindOf(File("elsewhere/0a/hosts")), VolumeKind::kShared);
  const std::string socket = dir_ / "s.sock";
  const auto listener = ListenUnix(socket);
  ASSERT_OK(listener);
  EXPECT_EQ(KindOf(socket), VolumeKind::kSocket);
  // A folder where a file belongs is no such file.
  EXPECT_EQ(KindOf(Folder("sandboxes/0b/hosts")), VolumeKind::kShared);
  const auto missing = SortVolume(dir_ / "none", mounts_);
  EXPECT_THAT(missing, testing::HasStatus(absl::StatusCode::kNotFound, dir_ / "none"));
}

TEST_F(SortVolumeTest, AMemoryVolumeIsOneWhoseOwnFolderIsATmpfs) {
  const std::string cache = Folder("pods/u/volumes/kubernetes.io~empty-dir/cache");
  fs::create_directories(cache + "/a/b");
  EXPECT_EQ(KindOf(cache), VolumeKind::kDisk) << "it lies on a tmpfs, perhaps, but is none";
  mounts_.push_back({"0:50", "/", fs::canonical(cache), "tmpfs", "tmpfs"});
  EXPECT_EQ(KindOf(cache), VolumeKind::kMemory);
  const auto inner = SortVolume(cache + "/a/b", mounts_);
  ASSERT_OK(inner);
  EXPECT_EQ(inner->kind, VolumeKind::kMemory);
  EXPECT_EQ(inner->path, cache);
  EXPECT_EQ(inner->sub, "a/b");
  EXPECT_EQ(KindOf(cache + "/../cache/a"), VolumeKind::kShared) << "no path of the kubelet's";
}

TEST_F(SortVolumeTest, ASubPathIsFoundBehindItsBindMount) {
  const std::string disk = Folder("pods/u/volumes/kubernetes.io~empty-dir/disk"),
                    cache = Folder("pods/u/volumes/kubernetes.io~empty-dir/cache"),
                    one = Folder("pods/u/volume-subpaths/disk/main/0"),
                    two = Folder("pods/u/volume-subpaths/cache/main/1"),
                    other = Folder("pods/u/volume-subpaths/claim/main/2");
  mounts_.push_back({"0:50", "/", cache, "tmpfs", "tmpfs"});
  mounts_.push_back({"8:1", disk + "/inner/one", one, "ext4", "none"});
  mounts_.push_back({"0:50", "/in", two, "tmpfs", "tmpfs"});
  mounts_.push_back({"8:7", "/in", other, "ext4", "none"});
  auto sorted = SortVolume(one, mounts_);
  ASSERT_OK(sorted);
  EXPECT_EQ(sorted->kind, VolumeKind::kDisk);
  EXPECT_EQ(sorted->path, disk);
  EXPECT_EQ(sorted->sub, "inner/one");
  sorted = SortVolume(two, mounts_);
  ASSERT_OK(sorted);
  EXPECT_EQ(sorted->kind, VolumeKind::kMemory);
  EXPECT_EQ(sorted->path, cache);
  EXPECT_EQ(sorted->sub, "in");
  EXPECT_EQ(KindOf(other), VolumeKind::kShared);
  // One that says that it is of a volume, but lies elsewhere.
  mounts_.push_back({"8:1", "/somewhere", one, "ext4", "none"});
  EXPECT_EQ(KindOf(one), VolumeKind::kShared);
}

}  // namespace
}  // namespace lamina::cri
