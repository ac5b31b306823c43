// Reading containerd's config.json, and making of it what the guest runs.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cri/block_device.h"
#include "cri/pod_files.h"
#include "sizing/plan.h"

namespace lamina::cri {

struct SpecMount {
  std::string destination, type, source;
  std::vector<std::string> options;
  bool is_bind() const;
  bool read_only() const;
  bool recursive_read_only() const;  // what is mounted below it too ("rro")
  bool follows_host() const;         // mount propagation from the host: slave or shared
};

// A block device of the node that the container asks for by its number.
struct SpecDevice {
  std::string path;  // in the container
  DeviceNumber number;
  std::string access;  // of "rwm"
  uint32_t mode = 0600, uid = 0, gid = 0;
  bool writable() const { return access.find('w') != std::string::npos; }
};

struct BundleSpec {
  std::map<std::string, std::string> annotations;
  std::string hostname;
  std::string cgroups_path;
  bool has_network_namespace = false;
  std::string netns_path;
  std::map<std::string, std::string> sysctls;
  std::vector<SpecMount> mounts;
  std::vector<SpecDevice> block_devices;
  bool read_only_root = false;
  bool all_devices = false;  // privileged: it has every device of the machine, which is the VM
  int oom_score_adj = 0;     // process.oomScoreAdj, -1000 to 1000
  sizing::Limits limits;     // linux.resources
  // Of the whole pod; from PodSandboxConfig alone, in a config.json they are annotations or nowhere.
  std::optional<sizing::Limits> pod_limits, pod_overhead;
  std::optional<PodFiles> files;  // to be made by the shim; absent: containerd has made them

  std::string Annotation(const std::string& key) const;
  std::string sandbox_id(const std::string& fallback) const;
};

// InvalidArgument names `what` (the file) and what is wrong in it: no JSON object, deeper than 64 levels, a
// NUL in a text (which would cut paths short), a mount without a destination.
absl::StatusOr<BundleSpec> ParseSpec(const std::string& json, const std::string& what);
absl::StatusOr<BundleSpec> ReadSpec(const std::string& bundle);

// What an update leaves of `limits`: the resources (OCI LinuxResources, JSON) that it names are replaced.
absl::StatusOr<sizing::Limits> UpdatedLimits(const sizing::Limits& limits, const std::string& resources_json);

// The spec for the guest, from a text that ParseSpec takes: bind mounts come from `guest_sources` (by index
// in mounts; "" drops the mount), pod-level namespaces are the VM's own, host paths and host devices are
// gone: the guest's agent adds the block devices under its own numbers. InvalidArgument: another device, but
// for a privileged container. `notes` receives what was dropped, in words.
absl::StatusOr<std::string> GuestSpec(const std::string& json,
                                      const std::map<size_t, std::string>& guest_sources,
                                      std::vector<std::string>& notes);

}  // namespace lamina::cri
