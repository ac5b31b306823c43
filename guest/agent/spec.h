// What the agent does to an OCI spec or process before crun reads it. The host has adapted it; here the
// guest's own facts go in, and what this kernel cannot do goes out. Plain functions of text.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "guest/protocol/contract.h"

namespace lamina::guest {

// A device of the guest, for one container.
struct ContainerDevice {
  std::string path;  // in the container
  uint32_t major = 0, minor = 0;
  std::string access;  // of "rwm"; empty: no rule of its own
  uint32_t mode = 0600, uid = 0, gid = 0;
  bool block = true;
};

struct SpecContext {
  std::string container_id = {};
  // What root.path becomes; empty: the spec's own, which then must lie below `shared_directory`.
  std::string rootfs = {};
  std::string shared_directory = kSharedDirectory;
  bool terminal = false;
  std::vector<ContainerDevice> devices = {};  // added to the spec's own
  // Whether the kernel has the hugetlb file of that page size ("2MB").
  std::function<bool(std::string_view page_size)> has_huge_pages = {};
};

struct PreparedSpec {
  std::string config_json;
  std::string rootfs;
  std::vector<std::string> shared_names;  // in the shared directory: what it mounts, and its root
};

// root.path, process.terminal, ociVersion (to 1.0.2, from any 1.x) and linux.cgroupsPath (/lamina/<id>) are
// set. Dropped: hooks, host LSM labels (the guest has no AppArmor or SELinux policy), intelRdt, resources
// that cgroup v2 has not (net_cls, realtime), hugepage limits without such pages, hostname without a UTS
// namespace. InvalidArgument, with what is wrong and where: no JSON object, deeper than 64 levels, no
// process.args, a namespace with a path outside /proc, a root outside the shared directory, a device whose
// path is not absolute or whose access is not of "rwm".
absl::StatusOr<PreparedSpec> PrepareSpec(std::string_view spec_json, const SpecContext& context);

struct PreparedProcess {
  std::string json;
  std::optional<int> oom_score_adj;  // -1000 to 1000
};

// The same for an OCI Process of an exec.
absl::StatusOr<PreparedProcess> PrepareProcess(std::string_view process_json, bool terminal);

// OCI LinuxResources for `crun update`, with the same droppings.
absl::StatusOr<std::string> PrepareResources(std::string_view resources_json,
                                             const std::function<bool(std::string_view)>& has_huge_pages);

// True when `path` is absolute, has no empty, "." or ".." part, and lies below `directory`.
bool IsBelow(std::string_view path, std::string_view directory);

}  // namespace lamina::guest
