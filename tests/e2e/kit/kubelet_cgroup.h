// A pod's cgroup, which the kubelet makes before RunPodSandbox and removes after RemovePodSandbox.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::e2e {

// The mounted hierarchies: all of cgroup v1's below /sys/fs/cgroup, or the one of v2.
std::vector<std::string> CgroupHierarchies();
// Makes `path` ("/lamina-x/pod") in each hierarchy; cpuset groups get their parent's CPUs and nodes.
absl::Status MakeCgroup(const std::string& path);
// Removes `path` in each hierarchy; FailedPrecondition names what is still below it.
absl::Status RemoveCgroup(const std::string& path);
// Every folder at or below `path` in any hierarchy.
std::vector<std::string> FindCgroups(const std::string& path);

}  // namespace lamina::e2e
