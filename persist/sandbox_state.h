// A sandbox's state: what a shim that starts, a cleanup, or laminad after a crash must know. docs/state.md
// has the format.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/process.h"

namespace lamina::persist {

// 1: the first. 2: what belongs to the network stands together; containers name their disks and pid. 3: the
// frame of base/framing.h.
inline constexpr int kStateVersion = 3;

enum class LifeCycle { kCreating, kReady, kStopping, kStopped };

enum class ContainerLife { kCreated, kRunning, kStopped };

struct ContainerState {
  std::string id;
  std::string bundle;
  ContainerLife life = ContainerLife::kCreated;
  uint32_t exit_status = 0;
  int64_t exit_unix_nanos = 0;
  std::vector<std::string> layer_ids;  // topmost first
  std::vector<std::string> mounts;     // names of the pod's volumes that it uses
  std::vector<std::string> disks;      // image files attached as SCSI disks for it
  std::vector<std::string> devices;    // names of the pod's disks that are its block devices
  uint32_t pid = 0;                    // of its init, in the guest
  // FIFOs of its init, empty: none; and the number of the first of its three streams.
  std::string stdin_path, stdout_path, stderr_path;
  bool terminal = false;
  uint32_t first_stream = 0;
};

// In an arena, or an image of its own that is a SCSI disk.
struct PlacedLayer {
  std::string id;
  std::string arena;  // empty: a disk
  uint64_t offset = 0, size = 0;
  std::string image_path;  // of a disk
  std::string tree_path;   // of a disk: its hash tree's, if it has one
  std::string device;      // where the guest finds it
};

// A volume of the pod, whatever containers use it.
struct PodVolume {
  std::string name;           // in the guest, and of a shared one under the shared directory
  std::string kind;           // as cri/volume_kind.h names it
  std::string source;         // on the host
  std::string device, place;  // which file or folder that is, whatever it is called: "8:1", "/a/b"
  bool read_only = false;     // on the host's side
  bool follows_host = false;
};

// A disk that is written.
struct PodDisk {
  std::string name;   // of the guest's volume
  std::string image;  // to be removed when it goes; empty: a device of the node
};

// Limits as sizing/plan.h has them; 0: none, or not said.
struct LimitsState {
  std::string name;
  int64_t quota = 0;
  uint64_t period = 0, shares = 0;
  int64_t memory_bytes = 0;
  uint64_t extra_memory_bytes = 0;
};

// What of the pod's limits a container stands for (sizing/pod.h).
struct LimitedPart {
  std::string name, id;
  LimitsState first, now;
};

struct SandboxState {
  int created_with_version = kStateVersion;  // kept when a newer Lamina writes the file anew
  LifeCycle life_cycle = LifeCycle::kCreating;
  std::string sandbox_id, pod_name, pod_namespace, pod_uid, bundle;
  // The plan, as far as it is needed again.
  uint32_t vcpus = 0;         // online
  uint64_t memory_bytes = 0;  // at boot, and what was asked for since
  uint32_t max_vcpus = 0;     // places for them
  uint64_t boot_memory_bytes = 0, max_hot_memory_bytes = 0;
  bool has_pod_limits = false;
  LimitsState pod_limits;  // the pod's sum at its start
  std::vector<LimitedPart> limited_parts;
  uint64_t claim_bytes = 0, claim_generation = 0;
  std::vector<uint32_t> numa_nodes;  // that its memory is bound to, ascending; none: anywhere
  std::vector<std::string> reasons;
  ProcessId shim, vmm, virtiofsd;
  // /proc/sys/kernel/random/boot_id when it was written: pids of another boot name nobody. Empty: older than
  // the field.
  std::string boot_id;
  std::string runtime_dir;  // sockets, shared directory
  bool has_pod_files =
      false;  // hostname, hosts, resolv.conf are the guest's, to be mounted in each container
  std::string netns_path, tap_name, mac;
  std::vector<std::string> cgroup_dirs;  // made by the shim, removed at the end
  std::vector<std::string> arenas;       // attached
  std::vector<PlacedLayer> layers;
  std::vector<PodVolume> volumes;
  std::vector<PodDisk> disks;  // named before they are made
  std::map<std::string, ContainerState> containers;
};

const char* LifeCycleName(LifeCycle value);

// The file's content: one frame (base/framing.h) of the kind "state", its payload JSON.
std::string EncodeState(const SandboxState& state);

// A file of an older version is migrated. DataLoss when damaged; FailedPrecondition when of a newer version;
// `what` (the path) stands in the message.
absl::StatusOr<SandboxState> DecodeState(std::string_view content, const std::string& what);

}  // namespace lamina::persist
