// `containerd-shim-lamina-v2 delete`: what containerd runs whenever it has lost a shim, or believes so.
#pragma once

#include <chrono>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "cri/command_line.h"
#include "proto/containerd/task.pb.h"

namespace lamina::cri {

// Ends what the sandbox's state names if its shim is dead. A shim that lives is asked: one that answers keeps
// its pod; one that does not within `patience` is ended first. A container's id has no state of its own, and
// harms nothing. Idempotent. DataLoss, FailedPrecondition: the state cannot be read, and stays untouched. The
// answer is what containerd takes for the task's end: status 137.
absl::StatusOr<containerd::DeleteResponse> DeleteLost(
    const CommandLine& line, const Config& config,
    std::chrono::milliseconds patience = std::chrono::seconds(3));

}  // namespace lamina::cri
