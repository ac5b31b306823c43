#include "sizing/annotations.h"

#include <algorithm>
#include <charconv>

#include "base/status.h"
#include "base/units.h"

namespace lamina::sizing {
namespace {

constexpr char kPrefix[] = "io.kubernetes.cri.sandbox-";
constexpr char kOwnPrefix[] = "lamina.io/";

absl::StatusOr<std::optional<int64_t>> Read(const Annotations& annotations, const char* suffix,
                                            int64_t least) {
  const std::string name = std::string(kPrefix) + suffix;
  const auto it = annotations.find(name);
  if (it == annotations.end() || it->second.empty()) return std::optional<int64_t>();
  int64_t value = 0;
  const char* end = it->second.data() + it->second.size();
  const auto [at, error] = std::from_chars(it->second.data(), end, value);
  if (error != std::errc() || at != end) {
    return InvalidArgument("annotation {}: \"{}\" is not a whole number", name, it->second);
  }
  if (value < least) return InvalidArgument("annotation {}: {} is negative", name, value);
  return std::optional<int64_t>(value);
}

std::optional<uint64_t> Positive(std::optional<int64_t> value) {
  if (value.value_or(0) <= 0) return std::nullopt;
  return static_cast<uint64_t>(*value);
}

}  // namespace

absl::StatusOr<Limits> LimitsFromAnnotations(const Annotations& annotations) {
  Limits limits;
  limits.name = "sandbox";
  ASSIGN_OR_RETURN(limits.cpu.quota, Read(annotations, "cpu-quota", -1));
  ASSIGN_OR_RETURN(const std::optional<int64_t> period, Read(annotations, "cpu-period", 0));
  ASSIGN_OR_RETURN(const std::optional<int64_t> shares, Read(annotations, "cpu-shares", 0));
  ASSIGN_OR_RETURN(limits.memory_bytes, Read(annotations, "memory", 0));
  limits.cpu.period = Positive(period);
  limits.cpu.shares = Positive(shares);
  return limits;
}

absl::StatusOr<Limits> LimitsFromCri(const CriResources& resources, const std::string& name) {
  if (resources.cpu_quota < -1)
    return InvalidArgument("{}: cpu_quota {} is negative", name, resources.cpu_quota);
  for (const auto& [field, value] :
       {std::pair("cpu_period", resources.cpu_period), std::pair("cpu_shares", resources.cpu_shares),
        std::pair("memory_limit_in_bytes", resources.memory_bytes)}) {
    if (value < 0) return InvalidArgument("{}: {} {} is negative", name, field, value);
  }
  Limits limits;
  limits.name = name;
  if (resources.cpu_quota != 0) limits.cpu.quota = resources.cpu_quota;
  limits.cpu.period = Positive(resources.cpu_period);
  limits.cpu.shares = Positive(resources.cpu_shares);
  if (resources.memory_bytes != 0) limits.memory_bytes = resources.memory_bytes;
  for (const uint64_t bytes : resources.hugepage_bytes) {
    if (bytes > INT64_MAX - limits.extra_memory_bytes) {
      return MakeStatus(absl::StatusCode::kOutOfRange, "{}: huge pages of {} bytes are too large", name,
                        bytes);
    }
    limits.extra_memory_bytes += bytes;
  }
  return limits;
}

absl::Status ApplyOverrides(const Annotations& annotations, const std::vector<std::string>& allowed,
                            PlanInput& input) {
  for (auto it = annotations.lower_bound(kOwnPrefix);
       it != annotations.end() && it->first.rfind(kOwnPrefix, 0) == 0; ++it) {
    const auto& [name, value] = *it;
    if (std::find(allowed.begin(), allowed.end(), name) == allowed.end()) {
      return MakeStatus(absl::StatusCode::kPermissionDenied,
                        "annotation {} (\"{}\") is not in sizing.allowed_annotations of this node's config",
                        name, value);
    }
    const std::string option = name.substr(sizeof kOwnPrefix - 1);
    if (option == "default-cpu") {
      ASSIGN_OR_RETURN(input.default_nano_cpus, ParseCpus(value, "annotation " + name));
    } else if (option == "default-memory") {
      ASSIGN_OR_RETURN(input.default_memory_bytes, ParseBytes(value, "annotation " + name));
    } else if (option == "overhead-cpu") {
      ASSIGN_OR_RETURN(input.overhead_nano_cpus, ParseCpus(value, "annotation " + name));
    } else if (option == "overhead-memory") {
      ASSIGN_OR_RETURN(input.overhead_memory_bytes, ParseBytes(value, "annotation " + name));
    } else if (name == kNumaNodesAnnotation) {
      ASSIGN_OR_RETURN(input.numa_nodes, ParseNumaNodes(value, "annotation " + name));
    } else {
      return InvalidArgument("annotation {} (\"{}\") is unknown to Lamina", name, value);
    }
  }
  return absl::OkStatus();
}

}  // namespace lamina::sizing
