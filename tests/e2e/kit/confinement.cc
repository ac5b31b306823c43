#include "tests/e2e/kit/confinement.h"

#include "base/config.h"
#include "base/file_system.h"
#include "base/process_rights.h"
#include "base/status.h"
#include "persist/state_store.h"
#include "vmm/confinement_check.h"

namespace lamina::e2e {

absl::Status CheckConfinement(const std::string& state_dir, const std::string& pod) {
  const persist::StateStore store(FileSystem::Real(), state_dir);
  const auto state = store.Load(pod);
  if (absl::IsNotFound(state.status())) return absl::OkStatus();
  RETURN_IF_ERROR(state.status());
  const auto shim = static_cast<pid_t>(state->shim.pid);
  const auto qemu = ReadProcessRights(static_cast<pid_t>(state->vmm.pid), shim);
  if (absl::IsNotFound(qemu.status())) return absl::OkStatus();  // it has ended meanwhile
  RETURN_IF_ERROR(qemu.status());
  const auto excess = vmm::QemuExcess(*qemu, Config().hypervisor.users);
  if (!excess.empty()) {
    return MakeStatus(absl::StatusCode::kInternal, "QEMU of pod {} has of the node: {}", pod,
                      fmt::join(excess, "; "));
  }
  const auto virtiofsd = ReadProcessRights(static_cast<pid_t>(state->virtiofsd.pid), shim);
  if (absl::IsNotFound(virtiofsd.status())) return absl::OkStatus();
  RETURN_IF_ERROR(virtiofsd.status());
  const auto more = vmm::VirtiofsdExcess(*virtiofsd);
  if (more.empty()) return absl::OkStatus();
  return MakeStatus(absl::StatusCode::kInternal, "virtiofsd of pod {} has of the node: {}", pod,
                    fmt::join(more, "; "));
}

}  // namespace lamina::e2e
