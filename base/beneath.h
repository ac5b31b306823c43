// Opening what lies in a folder, where somebody else may change the folder meanwhile.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace lamina {

enum class OtherMounts { kRefused, kEntered };

// Opens `path`, relative to the folder `directory` and without an empty part, as openat(2) does with `flags`
// (O_CLOEXEC is added; O_CREAT is not for it). No symbolic link is followed, ".." is not passed, and another
// mount is not entered unless told so, whatever happens to the names meanwhile. A link or another mount in
// the way: FailedPrecondition; errors else as ErrnoStatus; all name the path. Thread-safe. Needs Linux 5.6.
absl::StatusOr<UniqueFd> OpenBeneath(int directory, const std::string& path, int flags,
                                     OtherMounts mounts = OtherMounts::kRefused);

}  // namespace lamina
