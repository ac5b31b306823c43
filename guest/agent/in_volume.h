// Paths inside a volume that containers write: nothing in it leads out.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/beneath.h"
#include "base/unique_fd.h"

namespace lamina::guest {

// "a/b": parts that are neither empty nor "." nor "..", at most 4095 bytes. InvalidArgument names it.
absl::Status CheckRelative(std::string_view path, std::string_view what);

// Opens (O_PATH) what is at `path` in the volume at `root`; "" is the volume itself, a folder or a file. As
// lamina::OpenBeneath, with errors that name the whole path.
absl::StatusOr<UniqueFd> OpenInVolume(const std::string& root, const std::string& path, OtherMounts mounts);

// Looks at the folder at `path` below `root` so that what the host has mounted there becomes a mount here
// (fuse(4): submounts are mounted when somebody looks). Once it is one, all of this mount namespace and those
// copied from it meet in it. OK for what is no folder.
absl::Status EnterFolder(const std::string& root, const std::string& path);

}  // namespace lamina::guest
