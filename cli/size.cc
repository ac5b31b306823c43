// `lamina size`: the shim's sizing decision, without a shim.
#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/status.h"
#include "base/units.h"
#include "cli/cli.h"
#include "cri/oci_spec.h"
#include "sizing/annotations.h"
#include "sizing/from_config.h"
#include "sizing/plan.h"

namespace lamina::cli {
namespace {

template <typename T>
absl::StatusOr<T> ParseInteger(const std::string& text, const char* what) {
  T value = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || at != end || text.empty())
    return InvalidArgument("{} \"{}\": must be a whole number", what, text);
  return value;
}

// The quota and period that the kubelet would write; a period of a second in nanoseconds where 100 ms cannot
// express the CPUs exactly.
sizing::CpuLimit FromCpus(int64_t nano_cpus) {
  constexpr int64_t kPeriod = 100'000, kNanosPerQuota = 1'000'000'000 / kPeriod;
  if (nano_cpus % kNanosPerQuota == 0) return {nano_cpus / kNanosPerQuota, kPeriod, std::nullopt};
  return {nano_cpus, 1'000'000'000, std::nullopt};
}

absl::StatusOr<sizing::Limits> ParseContainer(const std::string& text, size_t index) {
  sizing::Limits limits;
  limits.name = fmt::format("container {}", index);
  for (size_t start = 0; start <= text.size();) {
    const size_t comma = std::min(text.find(',', start), text.size());
    const std::string part = text.substr(start, comma - start);
    start = comma + 1;
    const size_t equals = part.find('=');
    const std::string key = part.substr(0, equals),
                      value = equals == std::string::npos ? std::string() : part.substr(equals + 1);
    if (equals == std::string::npos || value.empty()) {
      return InvalidArgument("--container \"{}\": \"{}\" is not key=value; such as cpu=250m,memory=128Mi",
                             text, part);
    }
    if (key == "cpu") {
      ASSIGN_OR_RETURN(const int64_t nano_cpus, ParseCpus(value, "--container cpu"));
      limits.cpu = FromCpus(nano_cpus);
    } else if (key == "memory") {
      ASSIGN_OR_RETURN(const uint64_t bytes, ParseBytes(value, "--container memory"));
      limits.memory_bytes = static_cast<int64_t>(bytes);
    } else if (key == "extra-memory") {
      ASSIGN_OR_RETURN(limits.extra_memory_bytes, ParseBytes(value, "--container extra-memory"));
    } else if (key == "name") {
      limits.name = "container " + value;
    } else {
      return InvalidArgument(
          "--container \"{}\": unknown key \"{}\"; there are cpu, memory, extra-memory, name", text, key);
    }
  }
  return limits;
}

// The limits of a container's own config.json, by the shim's rule.
absl::StatusOr<sizing::Limits> LimitsFromSpec(const nlohmann::json& spec, const std::string& name) {
  sizing::Limits limits;
  limits.name = name.empty() ? "container" : "container " + name;
  const auto at = nlohmann::json::json_pointer("/linux/resources");
  return cri::UpdatedLimits(limits, spec.contains(at) ? spec.at(at).dump() : "{}");
}

// A config.json as containerd writes it: of the sandbox (the pod's sum in annotations), or of a container.
absl::Status ReadSpec(const std::string& path, const std::vector<std::string>& allowed,
                      sizing::PlanInput& input) {
  ASSIGN_OR_RETURN(const std::string text, ReadInput(path));
  const nlohmann::json spec = nlohmann::json::parse(text, nullptr, false);
  if (spec.is_discarded() || !spec.is_object()) return InvalidArgument("{}: not a config.json", path);
  sizing::Annotations annotations;
  if (const auto it = spec.find("annotations"); it != spec.end()) {
    if (!it->is_object()) return InvalidArgument("{}: \"annotations\" is not an object", path);
    for (const auto& [name, value] : it->items()) {
      if (!value.is_string()) return InvalidArgument("{}: annotation {} is not a text", path, name);
      annotations[name] = value.get<std::string>();
    }
  }
  RETURN_IF_ERROR(sizing::ApplyOverrides(annotations, allowed, input));
  if (annotations["io.kubernetes.cri.container-type"] == "container") {
    ASSIGN_OR_RETURN(sizing::Limits limits,
                     LimitsFromSpec(spec, annotations["io.kubernetes.cri.container-name"]));
    input.containers.push_back(std::move(limits));
  } else {
    ASSIGN_OR_RETURN(input.pod, sizing::LimitsFromAnnotations(annotations));
  }
  return absl::OkStatus();
}

absl::StatusOr<sizing::Limits> PodLimits(const SizeFlags& flags) {
  sizing::Limits pod;
  pod.name = "sandbox";
  if (!flags.quota.empty()) {
    ASSIGN_OR_RETURN(pod.cpu.quota, ParseInteger<int64_t>(flags.quota, "--quota"));
  }
  if (!flags.period.empty()) {
    ASSIGN_OR_RETURN(pod.cpu.period, ParseInteger<uint64_t>(flags.period, "--period"));
  }
  if (!flags.shares.empty()) {
    ASSIGN_OR_RETURN(pod.cpu.shares, ParseInteger<uint64_t>(flags.shares, "--shares"));
  }
  if (!flags.memory.empty()) {
    if (flags.memory[0] == '-') {  // the runtime spec writes -1 for "no limit"
      ASSIGN_OR_RETURN(pod.memory_bytes, ParseInteger<int64_t>(flags.memory, "--memory"));
      if (*pod.memory_bytes != -1)
        return InvalidArgument("--memory \"{}\": must not be negative; -1 means no limit", flags.memory);
    } else {
      ASSIGN_OR_RETURN(const uint64_t bytes, ParseBytes(flags.memory, "--memory"));
      pod.memory_bytes = static_cast<int64_t>(bytes);
    }
  }
  return pod;
}

absl::StatusOr<sizing::PlanInput> ReadPlanInput(const Common& common, const SizeFlags& flags) {
  Config config;
  if (!common.config.empty()) {
    ASSIGN_OR_RETURN(config, ReadConfig(common));
  }
  // Of whichever node the pod may come to: this host's size is no maximum.
  sizing::PlanInput input = sizing::PlanInputFrom(config, 0, 0);
  if (common.config.empty()) input.min_memory_bytes = 0;
  if (!flags.overhead_cpu.empty()) {
    ASSIGN_OR_RETURN(input.overhead_nano_cpus, ParseCpus(flags.overhead_cpu, "--overhead-cpu"));
  }
  if (!flags.overhead_memory.empty()) {
    ASSIGN_OR_RETURN(input.overhead_memory_bytes, ParseBytes(flags.overhead_memory, "--overhead-memory"));
  }
  if (!flags.default_cpu.empty()) {
    ASSIGN_OR_RETURN(input.default_nano_cpus, ParseCpus(flags.default_cpu, "--default-cpu"));
  }
  if (!flags.default_memory.empty()) {
    ASSIGN_OR_RETURN(input.default_memory_bytes, ParseBytes(flags.default_memory, "--default-memory"));
  }
  if (!flags.max_cpu.empty()) {
    ASSIGN_OR_RETURN(input.max_vcpus, ParseInteger<uint32_t>(flags.max_cpu, "--max-cpu"));
  }
  if (!flags.max_memory.empty()) {
    ASSIGN_OR_RETURN(input.max_memory_bytes, ParseBytes(flags.max_memory, "--max-memory"));
  }

  const bool by_flags =
      !flags.quota.empty() || !flags.period.empty() || !flags.shares.empty() || !flags.memory.empty();
  if (!flags.spec.empty()) {
    if (by_flags)
      return absl::InvalidArgumentError(
          "--spec holds the pod's limits: --quota, --period, --shares and --memory go without it");
    RETURN_IF_ERROR(ReadSpec(flags.spec, config.sizing.allowed_annotations, input));
  } else if (by_flags) {
    ASSIGN_OR_RETURN(input.pod, PodLimits(flags));
  }
  for (size_t i = 0; i < flags.containers.size(); ++i) {
    ASSIGN_OR_RETURN(sizing::Limits limits, ParseContainer(flags.containers[i], i + 1));
    input.containers.push_back(std::move(limits));
  }
  return input;
}

}  // namespace

absl::Status Size(const Common& common, const SizeFlags& flags) {
  ASSIGN_OR_RETURN(const sizing::PlanInput input, ReadPlanInput(common, flags));
  ASSIGN_OR_RETURN(const sizing::VmPlan plan, sizing::PlanVm(input));
  if (common.json) {
    nlohmann::ordered_json out;
    out["vcpus"] = plan.vcpus;
    out["vcpus_exact"] = plan.vcpus_exact;
    out["memory_mib"] = plan.memory_mib;
    out["vcpus_if_rounded_per_container"] = plan.vcpus_if_rounded_per_container;
    out["reasons"] = plan.reasons;
    fmt::print("{}\n", out.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
    return absl::OkStatus();
  }
  fmt::print("{} vCPU{} (exactly {}), {} MiB\n", plan.vcpus, plan.vcpus == 1 ? "" : "s", plan.vcpus_exact,
             plan.memory_mib);
  if (plan.vcpus_if_rounded_per_container > plan.vcpus) {
    fmt::print("rounding each container up would take {} vCPUs\n", plan.vcpus_if_rounded_per_container);
  }
  for (const std::string& reason : plan.reasons) fmt::print("  {}\n", Printable(reason));
  return absl::OkStatus();
}

}  // namespace lamina::cli
