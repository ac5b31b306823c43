// Hash trees for the kernel's dm-verity: what a guest reads of a disk is what the node examined, or an error.
// The format is the kernel's (Documentation/admin-guide/device-mapper/verity.rst): version 1, sha256, blocks
// of 4096 bytes, no salt, no superblock, the topmost level first.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "layers/erofs_image.h"

namespace lamina::layers {

struct VerityTree {
  std::string root_hash;  // 64 hex digits; names the image's content as dm-verity sees it
  uint64_t bytes = 0;     // of the tree: a 127th of the image's, a multiple of 4096, never 0
};

// Size of the tree of an image of `image_bytes`, which is a multiple of 4096 and not 0.
uint64_t VerityTreeBytes(uint64_t image_bytes);

// Writes the image's tree to `tree_path` (replaced, 0600, synced). Equal images give equal trees. The image
// is read once, in memory of constant size, and its sha256 taken of the same bytes: DataLoss when it is not
// `image.digest`. On error nothing is left at `tree_path`.
absl::StatusOr<VerityTree> MakeVerityTree(const Image& image, const std::string& tree_path,
                                          const Patience& patience = {});

}  // namespace lamina::layers
