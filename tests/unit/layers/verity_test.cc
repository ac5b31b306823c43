#include "layers/verity.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "base/sha256.h"
#include "layers/digest.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::layers {
namespace {

constexpr uint64_t kBlock = 4096;

class VerityTest : public ::testing::Test {
 protected:
  // Block i is the number i in decimal digits, then zeros.
  Image Numbers(uint64_t blocks) const {
    const std::string path = files_ / "image";
    std::ofstream out(path, std::ios::binary);
    for (uint64_t i = 0; i < blocks; ++i) {
      std::string block = std::to_string(i);
      block.resize(kBlock);
      out << block;
    }
    out.close();
    return {path, *DigestOf(path, 0, blocks * kBlock), blocks * kBlock};
  }
  std::string TreePath() const { return files_ / "tree"; }

  const testing::TempDir files_;
};

// What veritysetup 2.6 makes: format --no-superblock --salt - --hash sha256.
struct Known {
  uint64_t blocks, tree_bytes;
  const char *root, *tree_sha256;
};
constexpr Known kKnown[] = {
    {2, 4096, "3c1b5be08aa9dab9cb326840559a445fcf7948daee8287f2ce53a0c7cb6147c5",
     "3c1b5be08aa9dab9cb326840559a445fcf7948daee8287f2ce53a0c7cb6147c5"},
    {128, 4096, "0352b04cb032ee29d8c5087834931c37b476fafd641939a4997067330b48a8f3",
     "0352b04cb032ee29d8c5087834931c37b476fafd641939a4997067330b48a8f3"},
    {129, 12288, "2f87129070dbab5042c51d0340090580e873b09c1acd0822fc21b660c5062a56",
     "9447482339620285fbe4aab91a18ca6ed0bd2d4608e51e67c0f7ebc1e70d19f9"},
    {16384, 528384, "23a062a8d9e2556e70083043295a6d994c39789c51473de813fcfdfa5d420bce",
     "a84bbdd416102cfe3c018d8c7e1ff49d2208edb291a8b2e99413fbc77d53c496"},
    {16385, 540672, "d9a7e75b9efe0bc59587c49447c45107f0aa06f7bab24a0afebc589b5ae1f880",
     "e00e911ef131d4d8bc6bfd8bc3102730b72ccaae09447ac07bc33105566c1759"},
};

TEST_F(VerityTest, TreesAreThoseOfVeritysetup) {
  for (const Known& known : kKnown) {
    const auto tree = MakeVerityTree(Numbers(known.blocks), TreePath());
    ASSERT_OK(tree);
    EXPECT_EQ(tree->root_hash, known.root) << known.blocks;
    EXPECT_EQ(tree->bytes, known.tree_bytes) << known.blocks;
    EXPECT_EQ(VerityTreeBytes(known.blocks * kBlock), known.tree_bytes) << known.blocks;
    ASSERT_EQ(std::filesystem::file_size(TreePath()), known.tree_bytes);
    EXPECT_EQ(*DigestOf(TreePath(), 0, known.tree_bytes), known.tree_sha256) << known.blocks;
  }
}

TEST_F(VerityTest, OneBlockIsItsOwnRootAndTheTreeADiskOfZeros) {
  const Image image = Numbers(1);
  const auto tree = MakeVerityTree(image, TreePath());
  ASSERT_OK(tree);
  EXPECT_EQ(tree->root_hash, image.digest);
  EXPECT_EQ(tree->bytes, kBlock);
  EXPECT_EQ(*DigestOf(TreePath(), 0, kBlock), Sha256(std::string(kBlock, '\0')));
}

TEST_F(VerityTest, AnOlderLongerTreeIsReplacedAndNobodyElseReadsIt) {
  ASSERT_OK(MakeVerityTree(Numbers(129), TreePath()));
  ASSERT_OK(MakeVerityTree(Numbers(2), TreePath()));
  struct stat info {};
  ASSERT_EQ(stat(TreePath().c_str(), &info), 0);
  EXPECT_EQ(info.st_size, static_cast<off_t>(kBlock));
  EXPECT_EQ(info.st_mode & 0777, 0600U);
}

TEST_F(VerityTest, AnImageThatIsNotWhatItsDigestSaysGetsNone) {
  for (const uint64_t blocks : {1, 2, 129}) {
    const Image image = Numbers(blocks);
    std::fstream(image.path, std::ios::in | std::ios::out | std::ios::binary).seekp(100) << "x";
    const auto tree = MakeVerityTree(image, TreePath());
    EXPECT_THAT(tree, testing::HasStatus(absl::StatusCode::kDataLoss));
    EXPECT_FALSE(std::filesystem::exists(TreePath()));
  }
}

TEST_F(VerityTest, ErrorsNameTheFile) {
  Image image = Numbers(3);
  image.bytes += kBlock;
  EXPECT_THAT(MakeVerityTree(image, TreePath()), testing::HasStatus(absl::StatusCode::kDataLoss))
      << "it ends early";
  image.bytes = 0;
  EXPECT_THAT(MakeVerityTree(image, TreePath()), testing::HasStatus(absl::StatusCode::kInvalidArgument));
  image.bytes = 5000;
  EXPECT_THAT(MakeVerityTree(image, TreePath()), testing::HasStatus(absl::StatusCode::kInvalidArgument));
  const auto missing = MakeVerityTree({files_ / "none", "", kBlock}, TreePath());
  EXPECT_NE(missing.status().message().find("none"), absl::string_view::npos) << missing.status();
  EXPECT_FALSE(std::filesystem::exists(TreePath()));
}

TEST_F(VerityTest, NoRoomForTheTreeLeavesNothing) {
  const Image image = Numbers(16385);
  struct sigaction ignore {
  }, before{};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGXFSZ, &ignore, &before);
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit small{64 * 1024, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto tree = MakeVerityTree(image, TreePath());
  setrlimit(RLIMIT_FSIZE, &old);
  sigaction(SIGXFSZ, &before, nullptr);
  EXPECT_NOT_OK(tree);
  EXPECT_NE(tree.status().message().find("tree"), absl::string_view::npos) << tree.status();
  EXPECT_FALSE(std::filesystem::exists(TreePath()));
}

}  // namespace
}  // namespace lamina::layers
