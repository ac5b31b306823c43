// How large a pod's VM is. Pure rules: docs/sizing.md explains them with examples.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sizing/numa.h"
#include "sizing/rational.h"

namespace lamina::sizing {

// CPU limit as cgroups write it. quota in microseconds per period: 0 or absent means no limit; -1 with shares
// means shares/1024 CPUs (the kubelet's static CPU manager).
struct CpuLimit {
  std::optional<int64_t> quota;
  std::optional<uint64_t> period;  // microseconds; 100000 when absent
  std::optional<uint64_t> shares;
  bool operator==(const CpuLimit&) const = default;
};

// What one container, or the pod as a whole, may use.
struct Limits {
  std::string name;  // stands in errors and reasons: "sandbox", "container web"
  CpuLimit cpu;
  std::optional<int64_t> memory_bytes;  // 0, negative or absent: no limit
  uint64_t extra_memory_bytes = 0;      // hugepages and memory-backed volumes, on top of the memory limit
  bool operator==(const Limits&) const = default;
};

// A container whose limits were changed in place. `before` is what the pod's sum contains.
struct Resized {
  Limits before, after;
};

struct PlanInput {
  int64_t overhead_nano_cpus = 0;
  uint64_t overhead_memory_bytes = 0;
  int64_t default_nano_cpus = 1'000'000'000;
  uint64_t default_memory_bytes = 0;
  uint64_t min_memory_bytes = 0;  // what a guest needs to boot; smaller sums are raised to it
  uint32_t max_vcpus = 0;         // 0: no maximum
  uint64_t max_memory_bytes = 0;  // 0: no maximum
  NumaNodes numa_nodes;           // where the guest's memory is to lie, evenly; empty: anywhere
  // The pod's sum as it was at the start (the sandbox annotations), the changes since, and the containers
  // that are there, each with its own limits. The sum covers containers that have not come yet, the
  // containers show one that the sum does not know: in each dimension the larger of the two counts.
  std::optional<Limits> pod;
  std::vector<Resized> resized;
  std::vector<Limits> containers;
};

struct VmPlan {
  uint32_t vcpus = 1;
  uint64_t memory_mib = 0;  // multiple of 2
  std::string vcpus_exact;  // overhead + limits before rounding, "0.75" or "1/3"
  uint32_t vcpus_if_rounded_per_container = 1;
  uint64_t memory_exact_bytes = 0;  // before rounding
  int64_t exact_nano_cpus = 0;      // before rounding, cut to whole billionths
  int64_t limit_nano_cpus = 0;      // 0: none
  uint64_t limit_memory_bytes = 0;  // 0: none
  int64_t overhead_nano_cpus = 0;
  uint64_t overhead_memory_bytes = 0;
  std::vector<std::string> reasons;  // plain sentences with the numbers

  uint64_t memory_bytes() const { return memory_mib << 20; }
};

// vCPUs = ceil(overhead + Σ limits) where some CPU limit is set, else ceil(overhead + default); memory =
// overhead + Σ limits, rounded up to 2 MiB, where some memory limit is set, else overhead + default; each
// dimension by itself. A container without a limit beside limited ones adds the default once for all of them,
// so that it is not squeezed into the others' share. InvalidArgument names the limit and its value (quota
// below -1, period 0); OutOfRange names limit, overhead and maximum.
absl::StatusOr<VmPlan> PlanVm(const PlanInput& input);

// What the pod's cgroup allows. nullopt: no limit, or not known.
struct CgroupLimits {
  std::optional<uint64_t> memory_bytes;
  std::optional<int64_t> nano_cpus;  // quota over period
};

// Guest memory and the VM's host side must fit the pod's cgroup, or the kernel ends the VM when it is full;
// of the CPUs what the guest needs exactly, or it is throttled where its containers are not. What rounding
// adds is not held against a pod: less than 2 MiB, out of the host side's estimate, and a part of a vCPU that
// the containers' limits keep idle. Empty when it fits, else a sentence with the numbers; `cgroup` says whose
// limits they are.
std::string CgroupMisfit(const std::string& cgroup, const CgroupLimits& allowed, const VmPlan& plan,
                         uint64_t host_side_bytes);

}  // namespace lamina::sizing
