#include "layers/verity.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "base/positioned_io.h"
#include "base/sha256.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace lamina::layers {
namespace {

constexpr uint64_t kBlock = 4096;
constexpr uint64_t kHashesPerBlock = kBlock / sizeof(Sha256Bytes);
// As many blocks at a time as fill whole blocks of hashes.
constexpr uint64_t kBlocksAtATime = 2 * kHashesPerBlock;

// Blocks of each level, the lowest (which has the hashes of the data) first. One block of data has none: its
// hash is the root.
std::vector<uint64_t> LevelsOf(uint64_t data_blocks) {
  std::vector<uint64_t> levels;
  for (uint64_t blocks = data_blocks; blocks > 1;) {
    blocks = (blocks + kHashesPerBlock - 1) / kHashesPerBlock;
    levels.push_back(blocks);
  }
  return levels;
}

struct Range {
  int fd;
  const std::string* path;
  uint64_t offset, bytes;
};

// The tree that is written, and for how long.
struct Target {
  int fd;
  const std::string& path;
  const Patience& patience;
};

// The hash of each block of `from`, in blocks padded with zeros, to `to_offset` of the tree. `whole`, which
// may be null, takes all that is read.
absl::Status HashBlocks(const Range& from, const Target& tree, uint64_t to_offset, Sha256Hasher& block_hasher,
                        Sha256Hasher* whole) {
  std::vector<char> data(kBlocksAtATime * kBlock);
  for (uint64_t at = 0; at < from.bytes; at += data.size()) {
    RETURN_IF_ERROR(tree.patience.Check("write " + tree.path));
    const uint64_t bytes = std::min<uint64_t>(data.size(), from.bytes - at);
    RETURN_IF_ERROR(ReadAt(from.fd, *from.path, from.offset + at, data.data(), bytes));
    if (whole != nullptr) whole->Update(data.data(), bytes);
    std::vector<char> hashes;
    for (uint64_t block = 0; block < bytes; block += kBlock) {
      block_hasher.Update(data.data() + block, kBlock);
      const Sha256Bytes hash = block_hasher.Finish();
      hashes.insert(hashes.end(), hash.begin(), hash.end());
    }
    hashes.resize((hashes.size() + kBlock - 1) / kBlock * kBlock);
    RETURN_IF_ERROR(WriteAt(tree.fd, tree.path, to_offset, hashes.data(), hashes.size()));
    to_offset += hashes.size();
  }
  return absl::OkStatus();
}

absl::StatusOr<VerityTree> WriteTree(const Image& image, const Target& tree) {
  UniqueFd data(open(image.path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!data) return ErrnoStatus(errno, "open layer image " + image.path);
  Sha256Hasher whole, blocks;
  VerityTree made;
  made.bytes = VerityTreeBytes(image.bytes);
  Range from{data.get(), &image.path, 0, image.bytes};
  uint64_t end = made.bytes;  // levels are written from the lowest, which is the last one in the file
  for (const uint64_t level : LevelsOf(image.bytes / kBlock)) {
    end -= level * kBlock;
    RETURN_IF_ERROR(HashBlocks(from, tree, end, blocks, from.fd == tree.fd ? nullptr : &whole));
    from = {tree.fd, &tree.path, end, level * kBlock};
  }
  // What is left is one block: of the topmost level, or of the data.
  std::vector<char> top(kBlock);
  RETURN_IF_ERROR(ReadAt(from.fd, *from.path, from.offset, top.data(), top.size()));
  if (from.fd != tree.fd) {
    whole.Update(top.data(), top.size());
    RETURN_IF_ERROR(WriteAt(tree.fd, tree.path, 0, std::vector<char>(kBlock).data(), kBlock));
  }
  blocks.Update(top.data(), top.size());
  made.root_hash = Hex(blocks.Finish());
  if (const std::string found = Hex(whole.Finish()); found != image.digest) {
    return MakeStatus(absl::StatusCode::kDataLoss, "layer image {}: its sha256 is {}, not {}", image.path,
                      found, image.digest);
  }
  if (fsync(tree.fd) != 0) return ErrnoStatus(errno, "fsync " + tree.path);
  return made;
}

}  // namespace

uint64_t VerityTreeBytes(uint64_t image_bytes) {
  uint64_t blocks = 0;
  for (const uint64_t level : LevelsOf(image_bytes / kBlock)) blocks += level;
  return std::max<uint64_t>(blocks, 1) * kBlock;  // a disk has at least one block
}

absl::StatusOr<VerityTree> MakeVerityTree(const Image& image, const std::string& tree_path,
                                          const Patience& patience) {
  if (image.bytes == 0 || image.bytes % kBlock != 0)
    return InvalidArgument("{}: {} bytes are no multiple of {}", image.path, image.bytes, kBlock);
  UniqueFd tree(open(tree_path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!tree) return ErrnoStatus(errno, "create " + tree_path);
  absl::StatusOr<VerityTree> made = WriteTree(image, {tree.get(), tree_path, patience});
  if (!made.ok()) {
    unlink(tree_path.c_str());
    return Annotate(made.status(), "hash tree of layer " + image.digest);
  }
  return made;
}

}  // namespace lamina::layers
