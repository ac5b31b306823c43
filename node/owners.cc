#include "node/owners.h"

namespace lamina::node {

bool Owners::VmmLives(const laminad::v1::ClaimRecord& record) const {
  if (!OfThisBoot(record.boot_id())) return false;
  if (record.vmm_pid() != 0) return host_.Alive(record.vmm_pid(), record.vmm_start_time());
  // QEMU may run although its start was never told: the shim writes its pid down first.
  const absl::StatusOr<persist::SandboxState> state = states_.Load(record.claim().sandbox_id());
  if (!state.ok()) return state.status().code() != absl::StatusCode::kNotFound;
  return VmmLives(*state);
}

bool Owners::VmmLives(const persist::SandboxState& state) const {
  return OfThisBoot(state.boot_id) && state.vmm.pid != 0 && host_.Alive(state.vmm.pid, state.vmm.start_time);
}

bool Owners::Lives(const laminad::v1::ClaimRecord& record) const {
  if (!OfThisBoot(record.boot_id())) return false;
  return host_.Alive(record.claim().shim_pid(), record.claim().shim_start_time()) || VmmLives(record);
}

}  // namespace lamina::node
