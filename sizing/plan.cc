#include "sizing/plan.h"

#include <algorithm>

#include "base/status.h"
#include "base/units.h"

namespace lamina::sizing {
namespace {

constexpr uint64_t kMemoryGranule = 2 * kMiB, kPage = 4096;
constexpr uint64_t kDefaultPeriod = 100'000;  // the kernel's default, microseconds
constexpr uint64_t kNano = 1'000'000'000;

// nullopt: no limit.
absl::StatusOr<std::optional<Rational>> CpusOf(const Limits& limits) {
  const int64_t quota = limits.cpu.quota.value_or(0);
  const uint64_t period = limits.cpu.period.value_or(0) == 0 ? kDefaultPeriod : *limits.cpu.period;
  if (quota < -1) return InvalidArgument("{}: CPU quota {} is negative", limits.name, quota);
  if (quota > 0) {
    if (limits.cpu.period.has_value() && *limits.cpu.period == 0) {
      return InvalidArgument("{}: CPU period 0 beside quota {}", limits.name, quota);
    }
    return std::optional<Rational>(Rational(static_cast<uint64_t>(quota), period));
  }
  // Shares of 2 are the kubelet's "no request"; -1 with more is the static CPU manager's whole CPUs.
  if (quota == -1 && limits.cpu.shares.value_or(0) > 2)
    return std::optional<Rational>(Rational(*limits.cpu.shares, 1024));
  return std::optional<Rational>();
}

struct Sum {
  bool limited = false;
  bool unlimited_container = false;
  bool beyond_pod = false;  // the containers want more than the pod's sum
  Rational cpus;
  uint64_t memory = 0;
  uint64_t cpus_rounded_each = 0;
};

absl::Status AddMemory(uint64_t& sum, uint64_t bytes, const std::string& name) {
  if (bytes > INT64_MAX - sum)
    return MakeStatus(absl::StatusCode::kOutOfRange, "{}: memory of {} bytes is too large", name, bytes);
  sum += bytes;
  return absl::OkStatus();
}

uint64_t MemoryOf(const Limits& limits) {
  return limits.memory_bytes.value_or(0) > 0 ? static_cast<uint64_t>(*limits.memory_bytes) : 0;
}

// The pod's own sum, as its containers' changes have left it; nullopt: no limit is known of it.
absl::StatusOr<std::optional<Rational>> PodCpus(const PlanInput& input) {
  if (!input.pod) return std::optional<Rational>();
  ASSIGN_OR_RETURN(std::optional<Rational> sum, CpusOf(*input.pod));
  Rational taken;
  for (const Resized& change : input.resized) {
    ASSIGN_OR_RETURN(const std::optional<Rational> before, CpusOf(change.before));
    ASSIGN_OR_RETURN(const std::optional<Rational> after, CpusOf(change.after));
    if (after) {
      ASSIGN_OR_RETURN(sum, sum.value_or(Rational()).Plus(*after));
    }
    if (before) {
      ASSIGN_OR_RETURN(taken, taken.Plus(*before));
    }
  }
  if (sum) {
    ASSIGN_OR_RETURN(sum, sum->MinusOrZero(taken));
  }
  return sum;
}

absl::StatusOr<Sum> SumCpus(const PlanInput& input) {
  Sum sum;
  for (const Limits& container : input.containers) {
    ASSIGN_OR_RETURN(const std::optional<Rational> cpus, CpusOf(container));
    if (!cpus) {
      sum.unlimited_container = true;
      continue;
    }
    sum.limited = true;
    ASSIGN_OR_RETURN(sum.cpus, sum.cpus.Plus(*cpus));
    ASSIGN_OR_RETURN(const uint64_t rounded, cpus->Ceil());
    sum.cpus_rounded_each += rounded;
  }
  ASSIGN_OR_RETURN(const std::optional<Rational> pod, PodCpus(input));
  if (!pod) return sum;
  ASSIGN_OR_RETURN(const bool less, pod->Less(sum.cpus));
  sum.beyond_pod = less;
  if (!less) {
    // What no container accounts for yet is rounded as one part.
    ASSIGN_OR_RETURN(const Rational to_come, pod->MinusOrZero(sum.cpus));
    ASSIGN_OR_RETURN(const uint64_t rounded, to_come.Ceil());
    sum.cpus_rounded_each += rounded;
    sum.cpus = *pod;
  }
  sum.limited = sum.limited || !pod->is_zero();
  return sum;
}

absl::StatusOr<Sum> SumMemory(const PlanInput& input) {
  Sum sum;
  uint64_t extra = 0;
  for (const Limits& container : input.containers) {
    RETURN_IF_ERROR(AddMemory(extra, container.extra_memory_bytes, container.name));
    if (MemoryOf(container) == 0) {
      sum.unlimited_container = true;
      continue;
    }
    sum.limited = true;
    RETURN_IF_ERROR(AddMemory(sum.memory, MemoryOf(container), container.name));
  }
  if (input.pod) {
    uint64_t pod = MemoryOf(*input.pod), taken = 0;
    for (const Resized& change : input.resized) {
      RETURN_IF_ERROR(AddMemory(pod, MemoryOf(change.after), change.after.name));
      RETURN_IF_ERROR(AddMemory(taken, MemoryOf(change.before), change.before.name));
    }
    pod -= std::min(pod, taken);
    extra = std::max(extra, input.pod->extra_memory_bytes);
    sum.beyond_pod = pod > 0 && sum.memory > pod;
    sum.limited = sum.limited || pod > 0;
    sum.memory = std::max(sum.memory, pod);
  }
  RETURN_IF_ERROR(AddMemory(sum.memory, extra, "hugepages and memory-backed volumes"));
  return sum;
}

// "memory limits of 64MiB", or what else the sum is.
std::string SumText(const char* what, const Sum& sum, const std::string& amount) {
  return fmt::format("{} limits of {}{}", what, amount,
                     sum.beyond_pod ? " (the containers' own: more than the pod's sum)" : "");
}

absl::Status PlanCpus(const PlanInput& input, VmPlan& plan) {
  ASSIGN_OR_RETURN(const Sum sum, SumCpus(input));
  const Rational overhead(static_cast<uint64_t>(input.overhead_nano_cpus), kNano);
  const Rational fallback(static_cast<uint64_t>(input.default_nano_cpus), kNano);
  Rational wanted = sum.cpus;
  if (!sum.limited) {
    wanted = fallback;
    plan.reasons.push_back(fmt::format("no CPU limit: the default of {} CPU", fallback.ToString()));
  } else if (sum.unlimited_container) {
    ASSIGN_OR_RETURN(wanted, wanted.Plus(fallback));
    plan.reasons.push_back(
        fmt::format("{}, and the default of {} CPU once for the containers without a limit",
                    SumText("CPU", sum, sum.cpus.ToString()), fallback.ToString()));
  } else {
    plan.reasons.push_back(SumText("CPU", sum, sum.cpus.ToString()));
  }
  ASSIGN_OR_RETURN(const Rational total, wanted.Plus(overhead));
  ASSIGN_OR_RETURN(const uint64_t rounded, total.Ceil());
  const uint64_t vcpus = std::max<uint64_t>(1, rounded);
  if (input.max_vcpus != 0 && vcpus > input.max_vcpus) {
    return MakeStatus(absl::StatusCode::kOutOfRange,
                      "the pod needs {} vCPUs (limit {} + overhead {} = {}), more than the maximum of {}",
                      vcpus, wanted.ToString(), overhead.ToString(), total.ToString(), input.max_vcpus);
  }
  if (vcpus > 4096) {
    return MakeStatus(absl::StatusCode::kOutOfRange,
                      "the pod needs {} vCPUs (limit {} + overhead {}), more than any VM has", vcpus,
                      wanted.ToString(), overhead.ToString());
  }
  ASSIGN_OR_RETURN(const uint64_t overhead_rounded, overhead.Ceil());
  ASSIGN_OR_RETURN(const uint64_t fallback_rounded, fallback.Ceil());
  const uint64_t parts = sum.limited
                             ? sum.cpus_rounded_each + (sum.unlimited_container ? fallback_rounded : 0)
                             : fallback_rounded;
  plan.vcpus = static_cast<uint32_t>(vcpus);
  plan.vcpus_exact = total.ToString();
  plan.exact_nano_cpus = total.ToNano();
  plan.vcpus_if_rounded_per_container =
      static_cast<uint32_t>(std::clamp<uint64_t>(overhead_rounded + parts, 1, UINT32_MAX));
  plan.limit_nano_cpus = sum.limited ? sum.cpus.ToNano() : 0;
  plan.overhead_nano_cpus = input.overhead_nano_cpus;
  plan.reasons.push_back(fmt::format("plus overhead of {} CPU is {} exactly, rounded up once: {} vCPU{}",
                                     overhead.ToString(), total.ToString(), vcpus, vcpus == 1 ? "" : "s"));
  if (plan.vcpus_if_rounded_per_container > vcpus) {
    plan.reasons.push_back(fmt::format("rounding each part up by itself would have taken {} vCPUs",
                                       plan.vcpus_if_rounded_per_container));
  }
  return absl::OkStatus();
}

absl::Status PlanMemory(const PlanInput& input, VmPlan& plan) {
  ASSIGN_OR_RETURN(const Sum sum, SumMemory(input));
  uint64_t wanted = sum.memory;
  if (!sum.limited) {
    RETURN_IF_ERROR(AddMemory(wanted, input.default_memory_bytes, "default memory"));
    plan.reasons.push_back(fmt::format("no memory limit: the default of {}", FormatBytes(wanted)));
  } else if (sum.unlimited_container) {
    RETURN_IF_ERROR(AddMemory(wanted, input.default_memory_bytes, "default memory"));
    plan.reasons.push_back(fmt::format("{}, and the default of {} once for the containers without a limit",
                                       SumText("memory", sum, FormatBytes(sum.memory)),
                                       FormatBytes(input.default_memory_bytes)));
  } else {
    plan.reasons.push_back(SumText("memory", sum, FormatBytes(wanted)));
  }
  uint64_t total = wanted;
  RETURN_IF_ERROR(AddMemory(total, input.overhead_memory_bytes, "overhead memory"));
  if (std::max(total, input.min_memory_bytes) > INT64_MAX - kMemoryGranule)
    return absl::OutOfRangeError("the pod's memory is too large");
  const uint64_t least = std::max(input.min_memory_bytes, kMemoryGranule);
  const uint64_t rounded = (std::max(total, least) + kMemoryGranule - 1) / kMemoryGranule * kMemoryGranule;
  if (input.max_memory_bytes != 0 && rounded > input.max_memory_bytes) {
    return MakeStatus(absl::StatusCode::kOutOfRange,
                      "the pod needs {} of memory (limit {} + overhead {}), more than the maximum of {}",
                      FormatBytes(rounded), FormatBytes(wanted), FormatBytes(input.overhead_memory_bytes),
                      FormatBytes(input.max_memory_bytes));
  }
  plan.memory_mib = rounded / kMiB;
  plan.memory_exact_bytes = total;
  plan.limit_memory_bytes = sum.limited ? sum.memory : 0;
  plan.overhead_memory_bytes = input.overhead_memory_bytes;
  plan.reasons.push_back(fmt::format(
      "plus overhead of {} is {}, {} 2 MiB: {} MiB", FormatBytes(input.overhead_memory_bytes),
      FormatBytes(total),
      total < input.min_memory_bytes
          ? fmt::format("raised to the minimum of {} in steps of", FormatBytes(input.min_memory_bytes))
          : "rounded up to",
      plan.memory_mib));
  if (!input.numa_nodes.empty()) {
    plan.reasons.push_back(
        input.numa_nodes.size() == 1
            ? fmt::format("all of it from NUMA node {}", *input.numa_nodes.begin())
            : fmt::format("from NUMA nodes {}, as much from each", FormatNumaNodes(input.numa_nodes)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<VmPlan> PlanVm(const PlanInput& input) {
  if (input.overhead_nano_cpus < 0 || input.default_nano_cpus < 0) {
    return InvalidArgument("overhead ({}) and default ({}) CPUs must not be negative",
                           input.overhead_nano_cpus, input.default_nano_cpus);
  }
  VmPlan plan;
  RETURN_IF_ERROR(PlanCpus(input, plan));
  RETURN_IF_ERROR(PlanMemory(input, plan));
  return plan;
}

std::string CgroupMisfit(const std::string& cgroup, const CgroupLimits& allowed, const VmPlan& plan,
                         uint64_t host_side_bytes) {
  std::string misfit;
  const bool raised = plan.memory_bytes() - plan.memory_exact_bytes >= kMemoryGranule;  // to the minimum
  const uint64_t needed = (raised ? plan.memory_bytes() : plan.memory_exact_bytes) + host_side_bytes;
  // The kernel keeps a limit in whole pages.
  if (allowed.memory_bytes && needed / kPage > *allowed.memory_bytes / kPage) {
    misfit = fmt::format(
        "the VM needs {} (guest {} = limits and defaults {} + overhead {}{}; host side {}), but {} "
        "allows {}: {} are missing; raise overhead.podFixed of the RuntimeClass, or lower "
        "sizing.overhead_memory",
        FormatBytes(needed), FormatBytes(needed - host_side_bytes),
        FormatBytes(plan.memory_exact_bytes - plan.overhead_memory_bytes),
        FormatBytes(plan.overhead_memory_bytes), raised ? ", raised to the minimum" : "",
        FormatBytes(host_side_bytes), cgroup, FormatBytes(*allowed.memory_bytes),
        FormatBytes(needed - *allowed.memory_bytes));
  }
  if (allowed.nano_cpus && plan.exact_nano_cpus > *allowed.nano_cpus) {
    const auto cpus = [](int64_t nano) { return Rational(static_cast<uint64_t>(nano), kNano).ToString(); };
    misfit += fmt::format(
        "{}the VM of {} vCPUs needs {} CPUs (limits and defaults {} + overhead {}), but {} allows {}: it "
        "would "
        "be throttled; raise overhead.podFixed of the RuntimeClass by {}, or lower sizing.overhead_cpu",
        misfit.empty() ? "" : "; ", plan.vcpus, plan.vcpus_exact,
        cpus(plan.exact_nano_cpus - plan.overhead_nano_cpus), cpus(plan.overhead_nano_cpus), cgroup,
        cpus(*allowed.nano_cpus), cpus(plan.exact_nano_cpus - *allowed.nano_cpus));
  }
  return misfit;
}

}  // namespace lamina::sizing
