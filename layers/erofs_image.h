#pragma once

#include <chrono>
#include <stop_token>
#include <string>

#include "absl/status/statusor.h"
#include "layers/digest.h"

namespace lamina::layers {

struct Image {
  std::string path;
  std::string digest;  // sha256 of the file, 64 hex digits
  uint64_t bytes = 0;  // multiple of 4096
};

// Makes an EROFS image of a layer directory at `image_path`: the same content gives the same bytes. Files
// keep owner, mode, mtime, xattrs (trusted.* too), hard links, device nodes. Data is not inlined, so that DAX
// maps it. On error nothing is left at `image_path`, and the message names the directory with mkfs.erofs's
// own words. `stop` requested: mkfs.erofs is killed, Cancelled.
absl::StatusOr<Image> MakeErofsImage(const std::string& directory, const std::string& image_path,
                                     std::chrono::milliseconds timeout, const std::stop_token& stop = {});

// InvalidArgument unless `path` is a regular file that begins like an EROFS image. Gives its digest and size.
absl::StatusOr<Image> ExamineErofsImage(const std::string& path, const Patience& patience = {});

}  // namespace lamina::layers
