// What PID 1 does before anything else: a root that can be pivoted away from, the kernel's file systems,
// cgroups. Single-threaded.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace lamina::guest {

// The initramfs is the root of the mount tree, and pivot_root(2) refuses to leave that. A bind mount of it,
// moved over "/", has a parent, and needs no copy.
absl::Status EscapeInitramfs();

// proc, sysfs, devtmpfs, devpts, cgroup2, tmpfs on /run, /tmp, /dev/shm; /dev/null as stdin, stdout, stderr.
absl::Status MountBaseFileSystems();

// "cpu memory pids" -> "+cpu +memory +pids".
std::string SubtreeControlOf(std::string_view controllers);
// Makes <root>/lamina and enables each controller of <root> for it and for its children.
absl::Status EnableCgroupControllers(const std::string& root);

// Resource limits and sysctls that containers inherit.
void RaiseLimits();

}  // namespace lamina::guest
