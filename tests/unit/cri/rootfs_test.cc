#include "cri/rootfs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace lamina::cri {
namespace {

using ::testing::ElementsAre;
using Mounts = google::protobuf::RepeatedPtrField<containerd::Mount>;

void Add(Mounts& mounts, const std::string& type, const std::string& source,
         std::vector<std::string> options) {
  containerd::Mount* mount = mounts.Add();
  mount->set_type(type);
  mount->set_source(source);
  for (const std::string& option : options) mount->add_options(option);
}

HostMounts Host() {
  HostMounts host;
  host.mountinfo =
      "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
      "40 21 7:3 / /s/12/fs ro,relatime shared:9 - erofs /dev/loop3 ro\n"
      "41 21 0:50 / /s/13/fs ro - erofs /blobs/with\\040space.erofs ro\n"
      "42 21 7:4 / /s/14/fs ro - erofs /dev/loop4 ro\n"
      "43 21 7:5 /sub /s/15/fs ro - erofs /dev/loop5 ro\n"
      "44 21 7:6 / /s/16/fs ro - erofs /dev/loop6 ro\n"
      "45 44 8:1 /x /s/16/fs rw - ext4 /dev/sda1 rw\n";
  host.loop_file = [](const std::string& device) -> std::string {
    if (device == "7:4") return "/blobs/14.erofs (deleted)";
    return device[0] == '7' ? "/blobs/" + device.substr(2) + ".erofs" : "";
  };
  return host;
}

TEST(LayerSources, OfAnOverlayAreItsLowerDirectories) {
  Mounts mounts;
  Add(mounts, "overlay", "overlay",
      {"index=off", "workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/3/fs:/s/2/fs::/s/1/fs"});
  EXPECT_THAT(*LayerSources(mounts, Host()), ElementsAre("/s/3/fs", "/s/2/fs", "/s/1/fs"));
}

TEST(LayerSources, OfABindIsItsDirectory) {
  Mounts mounts;
  Add(mounts, "bind", "/s/1/fs", {"ro", "rbind"});
  EXPECT_THAT(*LayerSources(mounts, Host()), ElementsAre("/s/1/fs"));
}

TEST(LayerSources, OfErofsMountsAreTheBlobs) {
  Mounts mounts;
  Add(mounts, "mkfs/ext4", "/s/9/rwlayer.img", {"X-containerd.mkfs.fs=ext4", "rw", "loop"});
  Add(mounts, "erofs", "/s/2/layer.erofs", {"ro", "loop"});
  Add(mounts, "erofs", "/s/1/layer.erofs", {"ro", "loop"});
  Add(mounts, "format/mkdir/overlay", "overlay",
      {"upperdir={{ mount 0 }}/upper", "lowerdir={{ overlay 1 2 }}"});
  EXPECT_THAT(*LayerSources(mounts, Host()), ElementsAre("/s/2/layer.erofs", "/s/1/layer.erofs"));
}

TEST(LayerSources, OfAMergedErofsAreItsDevicesTopmostFirst) {
  Mounts mounts;
  Add(mounts, "erofs", "/s/3/fsmeta.erofs",
      {"ro", "loop", "device=/s/1/layer.erofs", "device=/s/2/layer.erofs", "device=/s/3/layer.erofs"});
  EXPECT_THAT(*LayerSources(mounts, Host()),
              ElementsAre("/s/3/layer.erofs", "/s/2/layer.erofs", "/s/1/layer.erofs"));
}

TEST(LayerSources, AMountedBlobIsTakenInsteadOfItsDirectory) {
  Mounts mounts;
  Add(mounts, "overlay", "overlay",
      {"lowerdir=/s/12/fs:/s/13/fs:/s/14/fs:/s/15/fs:/s/16/fs:/s/17/fs", "upperdir=/s/9/fs"});
  EXPECT_THAT(*LayerSources(mounts, Host()), ElementsAre("/blobs/3.erofs", "/blobs/with space.erofs",
                                                         "/s/14/fs", "/s/15/fs", "/s/16/fs", "/s/17/fs"))
      << "a deleted blob, a part of one, and what is hidden by another mount stay directories";
}

TEST(LayerSources, OtherMountsAreRefusedByTheirType) {
  Mounts mounts;
  Add(mounts, "btrfs", "/dev/sdb", {});
  const auto sources = LayerSources(mounts, Host());
  EXPECT_THAT(sources, testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_NE(sources.status().message().find("btrfs"), absl::string_view::npos);
  EXPECT_THAT(LayerSources(Mounts(), Host()), testing::HasStatus(absl::StatusCode::kInvalidArgument));
}

TEST(UpperDir, IsWhatTheSnapshotterCounts) {
  Mounts overlay, bind, view, block, erofs;
  EXPECT_EQ(UpperDir(overlay), "");
  Add(overlay, "overlay", "overlay",
      {"index=off", "workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/1/fs"});
  EXPECT_EQ(UpperDir(overlay), "/s/9/fs");
  Add(bind, "bind", "/s/9/fs", {"rw", "rbind"});
  EXPECT_EQ(UpperDir(bind), "/s/9/fs");
  Add(view, "bind", "/s/9/fs", {"ro", "rbind"});
  EXPECT_EQ(UpperDir(view), "");
  Add(block, "mkfs/ext4", "/s/9/rwlayer.img", {"X-containerd.mkfs.fs=ext4", "rw", "loop"});
  Add(block, "erofs", "/s/2/layer.erofs", {"ro", "loop"});
  Add(block, "format/mkdir/overlay", "overlay",
      {"upperdir={{ mount 0 }}/upper", "lowerdir={{ overlay 1 2 }}"});
  EXPECT_EQ(UpperDir(block), "/s/9");
  Add(erofs, "erofs", "/s/2/layer.erofs", {"ro", "loop"});
  Add(erofs, "format/overlay", "overlay", {"upperdir=/s/9/fs", "lowerdir={{ overlay 0 0 }}"});
  EXPECT_EQ(UpperDir(erofs), "/s/9/fs");
}

}  // namespace
}  // namespace lamina::cri
