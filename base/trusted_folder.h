// Opens a folder in which root makes files, whoever else may write somewhere on the way to it.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace lamina {

// `path` is absolute. A link on it is followed where only root can have made it (as /var/lib/kubelet ->
// /data/kubelet), else it is FailedPrecondition with its name. NotFound, and what else open(2) says, name the
// path. Thread-safe.
absl::StatusOr<UniqueFd> OpenTrustedFolder(const std::string& path);

}  // namespace lamina
