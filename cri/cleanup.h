// Ends what a sandbox left on the host, from its state alone. The normal stop, a failed start, and
// containerd's `delete` of a dead shim all end here.
#pragma once

#include "absl/status/status.h"
#include "base/config.h"
#include "cri/laminad_client.h"
#include "persist/sandbox_state.h"

namespace lamina::cri {

// <run_dir>/sandboxes/<id>: sockets, logs and the shared directory of one pod.
std::string RuntimeDir(const Config& config, const std::string& sandbox_id);

// Kills VM and virtiofsd (seen dead; of another boot of the host they are), then removes mounts, tap,
// cgroups, sockets, claim and regions; the state goes last. Idempotent. What fails is logged, the rest goes
// on, and the state stays so that laminad can finish. laminad away: its reconciler releases the claim.
absl::Status CleanUpSandbox(const Config& config, LaminadClient& laminad, const persist::SandboxState& state);

}  // namespace lamina::cri
