// /etc/hostname, /etc/hosts and /etc/resolv.conf of a pod that containerd's Sandbox service asked for: with a
// sandboxer of its own containerd makes none of them, nor the pod's /dev/shm, and mounts none in the
// containers.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::cri {

struct PodFiles {
  std::string hostname;                                             // empty: the node's, as containerd does
  std::vector<std::string> dns_servers, dns_searches, dns_options;  // all empty: the node's resolv.conf
};

inline std::string PodFilesDir(const std::string& runtime_dir) { return runtime_dir + "/etc"; }

// Writes the three files in `dir`, which is made if missing. Repeatable.
absl::Status WritePodFiles(const std::string& dir, const PodFiles& files);

// The OCI spec (JSON) with bind mounts of these files where nothing else is mounted, read-only where the root
// is, and with the pod's /dev/shm in the place of a private one. InvalidArgument as ParseSpec, `what` named.
absl::StatusOr<std::string> WithPodFiles(const std::string& json, const std::string& dir,
                                         const std::string& what);

}  // namespace lamina::cri
