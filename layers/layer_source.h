// What a layer is made of, and by what it is known again.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace lamina::layers {

struct LayerSource {
  std::string path;
  bool is_directory = false;  // else an EROFS image file
  std::string key;            // equal keys: equal content
};

// NotFound when there is none; InvalidArgument when it is neither a directory nor a file.
absl::StatusOr<LayerSource> DescribeSource(const std::string& path);

}  // namespace lamina::layers
