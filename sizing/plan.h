// How large a pod's VM is. Pure rules: docs/sizing.md explains them with examples.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sizing/rational.h"

namespace lamina::sizing {

// CPU limit as cgroups write it. quota in microseconds per period: 0 or absent means no limit; -1 with shares
// means shares/1024 CPUs (the kubelet's static CPU manager).
struct CpuLimit {
  std::optional<int64_t> quota;
  std::optional<uint64_t> period;  // microseconds; 100000 when absent
  std::optional<uint64_t> shares;
};

// What one container, or the pod as a whole, may use.
struct Limits {
  std::string name;  // stands in errors and reasons: "sandbox", "container web"
  CpuLimit cpu;
  std::optional<int64_t> memory_bytes;  // 0, negative or absent: no limit
  uint64_t extra_memory_bytes = 0;      // hugepages and memory-backed volumes, on top of the memory limit
};

struct PlanInput {
  int64_t overhead_nano_cpus = 0;
  uint64_t overhead_memory_bytes = 0;
  int64_t default_nano_cpus = 1'000'000'000;
  uint64_t default_memory_bytes = 0;
  uint32_t max_vcpus = 0;         // 0: no maximum
  uint64_t max_memory_bytes = 0;  // 0: no maximum
  // The pod's sum (the sandbox annotations) or each container's own limits. With both, the sum is what counts
  // and the containers are used for reasons only, unless a container without a limit shows that the sum is
  // not all.
  std::optional<Limits> pod;
  std::vector<Limits> containers;
};

struct VmPlan {
  uint32_t vcpus = 1;
  uint64_t memory_mib = 0;  // multiple of 2
  std::string vcpus_exact;  // overhead + limits before rounding, "0.75" or "1/3"
  uint32_t vcpus_if_rounded_per_container = 1;
  uint64_t memory_exact_bytes = 0;  // before rounding
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

}  // namespace lamina::sizing
