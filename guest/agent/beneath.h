// Paths inside a folder that containers write: nothing in it leads out.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace lamina::guest {

// "a/b": parts that are neither empty nor "." nor "..", at most 4095 bytes. InvalidArgument names it.
absl::Status CheckRelative(std::string_view path, std::string_view what);

// Opens (O_PATH) what is at `path` below the folder `root`, through no link; "" is `root` itself. Mounts are
// crossed only when told so. NotFound; FailedPrecondition: a link is in the way.
absl::StatusOr<UniqueFd> OpenBeneath(const std::string& root, const std::string& path, bool cross_mounts);

// Looks at the folder at `path` below `root` so that what the host has mounted there becomes a mount here
// (fuse(4): submounts are mounted when somebody looks). Once it is one, all of this mount namespace and those
// copied from it meet in it. OK for what is no folder.
absl::Status EnterBeneath(const std::string& root, const std::string& path);

}  // namespace lamina::guest
