// The guest image on the node, as its build left it.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "base/config.h"

namespace lamina::vmm {

// What its build writes beside kernel and initramfs: a line "<sha256>  <name>" for each, as sha256sum does.
inline std::string GuestDigests(const Config& config) { return config.paths.guest_dir + "/SHA256SUMS"; }

// OK: kernel and initramfs are those that the build wrote. NotFound: a file is missing. FailedPrecondition:
// one is another, or what is beside them is no list of digests. Reads some 60 MB where it was not asked
// before: what was found good is kept in <run_dir>/guest-image until a file changes or the host boots.
absl::Status CheckGuestImage(const Config& config);

}  // namespace lamina::vmm
