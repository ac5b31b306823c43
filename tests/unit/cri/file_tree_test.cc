#include "cri/file_tree.h"

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/unique_fd.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using testing::HasStatus;
using Kind = FileEntry::Kind;

class FileTreeTest : public ::testing::Test {
 protected:
  void SetUp() override { fs::create_directories(volume_); }
  void Put(const std::string& path, const std::string& text) const {
    std::ofstream(volume_ + "/" + path, std::ios::trunc) << text;
  }
  // "path kind content", a line for each entry but the volume itself.
  static std::string Words(const FileTree& tree) {
    std::string words;
    for (size_t i = 1; i < tree.entries.size(); ++i) {
      const FileEntry& entry = tree.entries[i];
      const char* kind = entry.kind == Kind::kFolder ? "folder" : entry.kind == Kind::kFile ? "file" : "link";
      words += entry.path + " " + kind + " " + entry.content + "\n";
    }
    return words;
  }

  testing::TempDir dir_;
  const std::string volume_ = dir_ / "volume";
};

TEST_F(FileTreeTest, AVolumeOfTheKubelets) {
  fs::create_directories(volume_ + "/..2026_11_26/sub");
  Put("..2026_11_26/key", "value");
  Put("..2026_11_26/sub/\xC3\xA4\xE2\x82\xAC", "deep");
  fs::create_symlink("..2026_11_26", volume_ + "/..data");
  fs::create_symlink("..2026_11_27", volume_ + "/..data_tmp");
  fs::create_symlink("..data/key", volume_ + "/key");
  fs::create_symlink("..data/sub", volume_ + "/sub");
  ASSERT_EQ(chmod(volume_.c_str(), 02770), 0);
  ASSERT_EQ(chmod((volume_ + "/..2026_11_26/key").c_str(), 0440), 0);
  ASSERT_OK_AND_ASSIGN(const FileTree tree, ReadFileTree(volume_));
  EXPECT_EQ(Words(tree),
            "..2026_11_26 folder \n"
            "..2026_11_26/key file value\n"
            "..2026_11_26/sub folder \n"
            "..2026_11_26/sub/\xC3\xA4\xE2\x82\xAC file deep\n"
            "..data link ..2026_11_26\n"
            "key link ..data/key\n"
            "sub link ..data/sub\n");
  EXPECT_EQ(tree.bytes, 9u);
  EXPECT_EQ(tree.entries[0].path, "");
  EXPECT_EQ(tree.entries[0].mode, 02770u);
  EXPECT_EQ(tree.entries[2].mode, 0440u);
  EXPECT_EQ(tree.entries[2].uid, geteuid());
  struct stat info {};
  ASSERT_EQ(stat((volume_ + "/key").c_str(), &info), 0);
  EXPECT_EQ(tree.entries[2].modified_unix_nanos, info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec);
}

TEST_F(FileTreeTest, ASingleFileAlsoThroughALink) {
  Put("hosts", "127.0.0.1 localhost\n");
  fs::create_symlink("hosts", volume_ + "/link");
  for (const char* name : {"/hosts", "/link"}) {
    ASSERT_OK_AND_ASSIGN(const FileTree tree, ReadFileTree(volume_ + name));
    ASSERT_EQ(tree.entries.size(), 1u);
    EXPECT_EQ(tree.entries[0].kind, Kind::kFile);
    EXPECT_EQ(tree.entries[0].path, "");
    EXPECT_EQ(tree.entries[0].content, "127.0.0.1 localhost\n");
  }
}

TEST_F(FileTreeTest, LinksOutOfAVolumeAreLinksAndNothingElse) {
  std::ofstream(dir_ / "secret") << "not yours";
  fs::create_symlink("../secret", volume_ + "/up");
  fs::create_symlink("/etc", volume_ + "/etc");
  ASSERT_OK_AND_ASSIGN(const FileTree tree, ReadFileTree(volume_));
  EXPECT_EQ(Words(tree), "etc link /etc\nup link ../secret\n");
}

TEST_F(FileTreeTest, WhatIsNoFileIsNamed) {
  ASSERT_EQ(mkfifo((volume_ + "/pipe").c_str(), 0600), 0);
  EXPECT_THAT(ReadFileTree(volume_), HasStatus(StatusCode::kInvalidArgument, volume_ + "/pipe"));
  EXPECT_THAT(ReadFileTree(volume_ + "/pipe"), HasStatus(StatusCode::kInvalidArgument, volume_ + "/pipe"));
  fs::remove(volume_ + "/pipe");
  const UniqueFd socket_fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  snprintf(address.sun_path, sizeof address.sun_path, "%s/s", volume_.c_str());
  ASSERT_EQ(bind(socket_fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  EXPECT_THAT(ReadFileTree(volume_), HasStatus(StatusCode::kInvalidArgument, volume_ + "/s"));
  EXPECT_THAT(ReadFileTree(volume_ + "/none"), HasStatus(StatusCode::kNotFound, volume_ + "/none"));
}

TEST_F(FileTreeTest, AStampChangesWithWhatIsThere) {
  fs::create_directories(volume_ + "/a");
  Put("a/f", "1");
  ASSERT_OK_AND_ASSIGN(const uint64_t first, FileTreeStamp(volume_));
  EXPECT_EQ(*FileTreeStamp(volume_), first);
  Put("a/f", "longer");
  ASSERT_OK_AND_ASSIGN(const uint64_t second, FileTreeStamp(volume_));
  EXPECT_NE(second, first);
  fs::create_symlink("f", volume_ + "/a/link");
  EXPECT_NE(*FileTreeStamp(volume_), second);
  EXPECT_THAT(FileTreeStamp(volume_ + "/none"), HasStatus(StatusCode::kNotFound));
}

TEST_F(FileTreeTest, EachLimitHolds) {
  Put("a", std::string(60, 'a'));
  Put("b", std::string(40, 'b'));
  fs::create_directories(volume_ + "/x/y");
  const FileTreeLimits fits{.bytes = 100, .files = 2, .entries = 5, .depth = 2};
  EXPECT_OK(ReadFileTree(volume_, fits));
  FileTreeLimits limits = fits;
  limits.bytes = 99;
  EXPECT_THAT(ReadFileTree(volume_, limits), HasStatus(StatusCode::kResourceExhausted, "99 bytes"));
  limits = fits;
  limits.files = 1;
  EXPECT_THAT(ReadFileTree(volume_, limits), HasStatus(StatusCode::kResourceExhausted, "1 files"));
  limits = fits;
  limits.entries = 4;
  EXPECT_THAT(ReadFileTree(volume_, limits), HasStatus(StatusCode::kResourceExhausted, "4 entries"));
  limits = fits;
  limits.depth = 1;
  EXPECT_THAT(ReadFileTree(volume_, limits), HasStatus(StatusCode::kResourceExhausted, "1 folders"));
  // A file that says it is huge takes no memory.
  ASSERT_EQ(truncate((volume_ + "/a").c_str(), off_t{1} << 40), 0);
  EXPECT_THAT(ReadFileTree(volume_), HasStatus(StatusCode::kResourceExhausted, "bytes"));
}

TEST_F(FileTreeTest, AMountInAVolumeIsNotEntered) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  fs::create_directories(volume_ + "/other");
  ASSERT_EQ(mount("none", (volume_ + "/other").c_str(), "tmpfs", 0, nullptr), 0);
  const auto tree = ReadFileTree(volume_);
  EXPECT_EQ(umount2((volume_ + "/other").c_str(), MNT_DETACH), 0);
  EXPECT_THAT(tree, HasStatus(StatusCode::kFailedPrecondition, "mount"));
}

// While a writer swaps versions, each reading shows one of them, whole.
TEST_F(FileTreeTest, WhatIsReadWasThereAtOneMoment) {
  const auto publish = [&](int version) {
    const std::string folder = "..v" + std::to_string(version);
    fs::create_directories(volume_ + "/" + folder);
    for (const char* key : {"one", "two", "three"}) Put(folder + "/" + key, std::to_string(version));
    fs::create_symlink(folder, volume_ + "/..data_tmp");
    fs::rename(volume_ + "/..data_tmp", volume_ + "/..data");
    fs::remove_all(volume_ + "/..v" + std::to_string(version - 1));
  };
  publish(1);
  std::atomic<bool> over{false};
  std::atomic<int> versions{1};
  std::thread writer([&] {
    while (!over) publish(++versions);
  });
  int whole = 0;
  for (int readings = 0; readings < 2000 && whole < 50; ++readings) {
    const auto tree = ReadFileTree(volume_);
    if (!tree.ok()) {
      EXPECT_THAT(tree, HasStatus(StatusCode::kUnavailable, volume_));
      continue;
    }
    ++whole;
    std::string data;
    for (const FileEntry& entry : tree->entries) {
      if (entry.path == "..data") data = entry.content;
    }
    int found = 0;
    for (const FileEntry& entry : tree->entries) {
      if (entry.kind != Kind::kFile || entry.path.rfind(data + "/", 0) != 0) continue;
      ++found;
      EXPECT_EQ("..v" + entry.content, data);
    }
    EXPECT_EQ(found, 3);
  }
  over = true;
  writer.join();
  // Under a writer without a pause a reading may never succeed; without one it does.
  EXPECT_OK(ReadFileTree(volume_));
}

}  // namespace
}  // namespace lamina::cri
