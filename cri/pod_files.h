// /etc/hostname, /etc/hosts and /etc/resolv.conf of a pod that containerd's Sandbox service asked for: with a
// sandboxer of its own containerd makes none of them, nor the pod's /dev/shm, and mounts none in the
// containers. They are the guest's, in its memory: the host keeps none that a container could write.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace lamina::cri {

struct PodFiles {
  std::string hostname;                                             // empty: the node's, as containerd does
  std::vector<std::string> dns_servers, dns_searches, dns_options;  // all empty: the node's resolv.conf
};

// Name -> content of the three. A file of the node's that cannot be read, or is larger than the guest takes,
// is empty, and the log says so. InvalidArgument: the pod's own resolv.conf is larger.
absl::StatusOr<std::map<std::string, std::string>> PodFileContents(const PodFiles& files);

// The OCI spec (JSON) with bind mounts of these files where nothing else is mounted, read-only where the root
// is, and with the pod's /dev/shm in the place of a private one. The files' sources are in the guest
// (guest::kPodFilesDirectory). InvalidArgument as ParseSpec, `what` named.
absl::StatusOr<std::string> WithPodFiles(const std::string& json, const std::string& what);

// Whether a mount with this source and destination is one that WithPodFiles made.
bool IsPodFileMount(const std::string& source, const std::string& destination);

}  // namespace lamina::cri
