#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sizing/plan.h"

namespace lamina::cri {

// Where a sandbox's host processes live: one directory per cgroup v1 hierarchy, or one of cgroup v2.
struct HostCgroup {
  std::vector<std::string> dirs;
  std::vector<std::string> procs_files() const;
};

// linux.cgroupsPath as a path under the hierarchy: "/kubepods/pod1/abc" as it is, systemd's
// "slice:prefix:name" expanded
// ("kubepods-pod1.slice:cri-containerd:abc" ->
// "/kubepods.slice/kubepods-pod1.slice/cri-containerd-abc.scope"). InvalidArgument for "..", or an empty
// part.
absl::StatusOr<std::string> CgroupPath(const std::string& cgroups_path);

// The sandbox's directories under every hierarchy that is mounted at `root` (/sys/fs/cgroup); nothing is
// made.
HostCgroup HostCgroupAt(const std::string& root, const std::string& path);

// One write, into a file that is there. Errors name file and value.
absl::Status WriteCgroupFile(const std::string& file, const std::string& value);

// Makes them; cgroups of v2 above them pass memory and pids on, where they can. What exists is reused. On
// error what was made is removed.
absl::StatusOr<HostCgroup> MakeHostCgroup(const std::string& root, const std::string& path);

// The limits of the pod's cgroup, which is the parent of the sandbox's `path`, of cgroup v1 or v2. nullopt:
// none is set, or there is no such cgroup.
sizing::CgroupLimits PodCgroupLimits(const std::string& root, const std::string& path);

// Kills what still runs in the directories, which are one sandbox's, waits for its end and removes them; the
// pod's own cgroup above them is the kubelet's. Gone already: OK. DeadlineExceeded names a directory that is
// still in use.
absl::Status RemoveHostCgroup(const std::vector<std::string>& dirs, std::chrono::milliseconds timeout);

}  // namespace lamina::cri
