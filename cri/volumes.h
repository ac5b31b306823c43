// The directory that virtiofsd shares with the guest, and the bind mounts in it.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace lamina::cri {

// Makes `dir` a mount of its own with shared propagation. Repeated: OK.
absl::Status MakeSharedDir(const std::string& dir);

// Binds `source` (file or directory, with what is mounted below it) to <shared_dir>/<name>, which is made.
// Read-only on the host's side, so that the guest cannot write whatever it does. On error nothing stays.
// NotFound names a missing source.
absl::Status BindVolume(const std::string& shared_dir, const std::string& name, const std::string& source,
                        bool read_only);

// Unmounts and removes one; gone already: OK.
absl::Status UnbindVolume(const std::string& shared_dir, const std::string& name);

// Unmounts all below `dir`, and `dir` itself.
absl::Status UnmountTree(const std::string& dir);

}  // namespace lamina::cri
