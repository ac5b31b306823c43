// The seam to the host's processes, memory and VMs.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "sizing/numa.h"
#include "vmm/balloon.h"

namespace lamina::node {

// A NUMA node's memory.
struct NumaMemory {
  uint64_t total_bytes = 0;
  uint64_t left_bytes = 0;  // free, or a file's cache or the kernel's that can be dropped
};

struct MemoryLeft {
  uint64_t bytes = 0;
  std::string where;  // "the node", or the cgroup that has least
};

// Thread-safe.
class Host {
 public:
  virtual ~Host() = default;
  virtual bool Alive(int64_t pid, uint64_t start_time) = 0;
  // Another after each boot; empty where the kernel does not say.
  virtual std::string BootId() = 0;
  // What the process holds that is its own: anonymous and shared memory, without mapped files (arenas are the
  // page cache's).
  virtual uint64_t ResidentBytes(int64_t pid) = 0;
  // MemTotal, or less where a cgroup around the node's pods is limited to less.
  virtual uint64_t MemTotalBytes() = 0;
  // MemAvailable, or what such a cgroup has left of its limit (its file cache counts as left) if that is
  // less.
  virtual MemoryLeft Left() = 0;
  // Of each NUMA node with memory; empty where the kernel shows none.
  virtual std::map<uint32_t, NumaMemory> NumaNodes() = 0;
  // The balloon of the VM whose sockets are in `runtime_dir`; its shim answers.
  virtual absl::StatusOr<std::unique_ptr<vmm::Balloon>> OpenBalloon(const std::string& runtime_dir) = 0;
  // Between two looks at a balloon.
  virtual void Nap(std::chrono::milliseconds time) = 0;
  static Host& Real();
};

// The cgroups whose limits bind the node's pods, seen from a process whose /proc/<pid>/cgroup is `text`: the
// hierarchy's root and the parents of the process's own cgroup, but nothing below a "kubepods" level, where
// limits are one pod's. Pairs of {version 2?, path below the mount}.
std::vector<std::pair<bool, std::string>> PodCgroups(const std::string& text);

// The cgroups of all the node's pods below `root` (/sys/fs/cgroup), whichever driver the kubelet uses: their
// limit binds every VM, wherever laminad itself runs.
std::vector<std::pair<bool, std::string>> Kubepods(const std::string& root);
// A sentence where neither can be seen, because laminad has a cgroup namespace of its own: the target of
// /proc/self/ns/cgroup. Empty: they can.
std::string HiddenCgroups(const std::string& cgroup_namespace, const std::string& root);

// The NUMA nodes as the kernel shows them below `root` (/sys/devices/system/node). Those without memory, and
// those that QEMU cannot bind to (sizing/numa.h), are left out.
std::map<uint32_t, NumaMemory> ReadNumaNodes(const std::string& root);

// What a cgroup has left: its limit less its usage, of which the inactive file cache could be dropped.
// UINT64_MAX without a limit. `stat` is memory.stat.
uint64_t CgroupLeft(bool v2, uint64_t limit, uint64_t usage, const std::string& stat);

}  // namespace lamina::node
