// A container's root: overlayfs of its layers under a writable top on a tmpfs or a volume.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::guest {

// "lowerdir=0:1,upperdir=…,workdir=…", topmost layer first. Mount options are limited to a page, so lower
// directories are names relative to the directory that the caller stands in. InvalidArgument for no layers,
// too many, a name with ':' ',' or '\\', or options over 4095 bytes.
absl::StatusOr<std::string> OverlayOptions(const std::vector<std::string>& lower, std::string_view upper,
                                           std::string_view work);

// Makes <directory>/rootfs and mounts the overlay there. What is written goes to `writable`, a mounted volume
// that nobody else has, or where that is empty to a tmpfs, mounted on <directory>/rw. `top_layer` gives the
// root directory its mode and owner. `links` are relative to `links_directory`. On error nothing stays
// mounted. Thread-safe.
absl::Status MountOverlay(const std::string& directory, const std::string& links_directory,
                          const std::vector<std::string>& links, const std::string& top_layer,
                          const std::string& writable);

// Unmounts what MountOverlay mounted; OK when nothing is. A mount that is busy is detached.
absl::Status UnmountOverlay(const std::string& directory);

}  // namespace lamina::guest
