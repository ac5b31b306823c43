// An image while it is being placed: shared by all calls that wait for it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "base/file_system.h"
#include "base/unique_fd.h"
#include "layers/erofs_image.h"

namespace lamina::layers {

struct LayerImage {
  explicit LayerImage(FileSystem& fs) : fs(fs) {}
  // Removes the temporary file, and lets go of what was held. Not with the store's mutex held.
  ~LayerImage() {
    if (!temporary.empty()) fs.Remove(temporary).IgnoreError();
    if (release) release();
  }
  LayerImage(const LayerImage&) = delete;
  LayerImage& operator=(const LayerImage&) = delete;

  FileSystem& fs;
  Image image;
  UniqueFd file;          // what is read, whatever its name is meanwhile
  std::string temporary;  // empty once it became a disk; changed only by who has its digest's files
  bool made = false;      // converted or copied: bytes that were not there before
  double convert_seconds = 0;
  std::function<void()> release;
};
using LayerImagePtr = std::shared_ptr<LayerImage>;

}  // namespace lamina::layers
