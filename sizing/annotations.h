#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sizing/plan.h"

namespace lamina::sizing {

using Annotations = std::map<std::string, std::string>;

// The pod's limits as containerd's CRI plugin writes them on the sandbox's spec
// (io.kubernetes.cri.sandbox-cpu-quota, -cpu-period, -cpu-shares, -memory; containerd >= 1.6, "0" where
// unset). No annotation: limits without values. InvalidArgument names annotation and value.
absl::StatusOr<Limits> LimitsFromAnnotations(const Annotations& annotations);

// The same limits, or the RuntimeClass's overhead.podFixed, as the CRI's LinuxContainerResources carry them
// with the Sandbox service. There 0 means "not set" in every field.
struct CriResources {
  int64_t cpu_period = 0, cpu_quota = 0, cpu_shares = 0, memory_bytes = 0;
  std::vector<uint64_t> hugepage_bytes;  // one for each page size
};
// InvalidArgument names the field and its value; OutOfRange when the huge pages do not fit 63 bits.
absl::StatusOr<Limits> LimitsFromCri(const CriResources& resources, const std::string& name);

inline constexpr char kNumaNodesAnnotation[] = "lamina.io/numa-nodes";

// Per-pod overrides: lamina.io/default-cpu, lamina.io/default-memory, lamina.io/overhead-cpu,
// lamina.io/overhead-memory, lamina.io/numa-nodes. An annotation lamina.io/* that is unknown or not in
// `allowed` is an error that names it.
absl::Status ApplyOverrides(const Annotations& annotations, const std::vector<std::string>& allowed,
                            PlanInput& input);

}  // namespace lamina::sizing
