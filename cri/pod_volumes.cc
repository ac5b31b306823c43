#include "cri/pod_volumes.h"

#include "base/status.h"
#include "cri/pod_files.h"
#include "cri/volumes.h"
#include "guest/protocol/contract.h"

namespace lamina::cri {

using persist::SandboxState;

std::string PodVolumes::SharedDir() const {
  return book_.Look([](const SandboxState& state) { return state.runtime_dir + "/shared"; });
}

absl::Status PodVolumes::Take(const std::string& container_id, const BundleSpec& spec, Held& held,
                              std::map<size_t, std::string>& sources) {
  const std::string shared_dir = SharedDir();
  const bool pod_files = book_.Look([](const SandboxState& state) { return state.has_pod_files; });
  for (size_t i = 0; i < spec.mounts.size(); ++i) {
    const SpecMount& mount = spec.mounts[i];
    if (!mount.is_bind()) continue;
    if (pod_files && IsPodFileMount(mount.source, mount.destination)) {
      sources[i] = mount.source;  // in the guest's memory, like the next
      continue;
    }
    if (mount.destination == "/dev/shm") {
      sources[i] = guest::kShmDirectory;  // the pod's, in the guest's memory
      continue;
    }
    const std::string name = fmt::format("{}-{}", container_id, i);
    RETURN_IF_ERROR(BindVolume(shared_dir, name, mount.source, {mount.read_only(), mount.follows_host()}));
    held.push_back(name);
    sources[i] = std::string(guest::kSharedDirectory) + "/" + name;
  }
  return absl::OkStatus();
}

absl::Status PodVolumes::GiveBack(const Held& held) {
  const std::string shared_dir = SharedDir();
  absl::Status first;
  for (const std::string& name : held) first.Update(UnbindVolume(shared_dir, name));
  return first;
}

}  // namespace lamina::cri
