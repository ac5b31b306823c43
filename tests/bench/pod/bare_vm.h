// A pod's QEMU command run without Lamina: what a sandbox's start is measured against.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace lamina::bench {

// The command of a running QEMU without the devices that need something of the host's prepared first: the
// tap, the shared directory and arenas. Pure.
std::vector<std::string> BareCommand(const std::vector<std::string>& argv);

// argv of a process.
absl::StatusOr<std::vector<std::string>> CommandOf(int pid);

// Seconds from before the fork until the agent's first answer. The VM is killed, and its end seen, before the
// return. The command's sockets are made in `dir`.
absl::StatusOr<double> BootBare(const std::vector<std::string>& argv, const std::string& dir);

}  // namespace lamina::bench
