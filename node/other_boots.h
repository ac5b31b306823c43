// What sandboxes of an earlier boot have left on disk. Their VMs, cgroups and mounts went with that boot.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "base/file_system.h"
#include "persist/sandbox_state.h"

namespace lamina::node {

// Removes the runtime directory that `state` names, then the sandbox's state in `state_dir`: while something
// is left, the state says so. A runtime directory that is not inside `run_dir`, or has something mounted in
// it, is not touched, nor is the state: FailedPrecondition. Repeatable.
absl::Status ClearOtherBoot(FileSystem& fs, const std::string& run_dir, const std::string& state_dir,
                            const persist::SandboxState& state);

// A mount point at or below `directory` in the text of /proc/self/mountinfo; empty: there is none. Pure.
std::string MountIn(const std::string& mountinfo, const std::string& directory);

}  // namespace lamina::node
