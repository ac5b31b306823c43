#include "cri/pod_size.h"

#include <sys/sysinfo.h>

#include <algorithm>

#include "base/log.h"
#include "base/status.h"
#include "base/units.h"
#include "cri/cgroup.h"
#include "cri/host_limits.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"
#include "sizing/annotations.h"
#include "sizing/from_config.h"

namespace lamina::cri {
namespace {

using persist::SandboxState;
using std::chrono::steady_clock;

constexpr std::chrono::seconds kAgentTimeout{30};
constexpr std::chrono::seconds kGrowTimeout{20};  // a busy host under emulation takes its time
constexpr std::chrono::seconds kOfflineTimeout{5};
constexpr std::chrono::milliseconds kFirstLook{100}, kLongestLook{10'000};
constexpr size_t kWatchStackBytes = 128 * 1024;
constexpr char kCgroupRoot[] = "/sys/fs/cgroup";

sizing::PlanInput InputFrom(const Config& config) {
  struct sysinfo host {};
  sysinfo(&host);
  return sizing::PlanInputFrom(config, static_cast<uint32_t>(get_nprocs_conf()),
                               uint64_t{host.totalram} * host.mem_unit);
}

persist::LimitsState ToState(const sizing::Limits& limits) {
  return {limits.name,
          limits.cpu.quota.value_or(0),
          limits.cpu.period.value_or(0),
          limits.cpu.shares.value_or(0),
          limits.memory_bytes.value_or(0),
          limits.extra_memory_bytes};
}

sizing::Limits FromState(const persist::LimitsState& state) {
  sizing::Limits limits;
  limits.name = state.name;
  if (state.quota != 0) limits.cpu.quota = state.quota;
  if (state.period != 0) limits.cpu.period = state.period;
  if (state.shares != 0) limits.cpu.shares = state.shares;
  if (state.memory_bytes != 0) limits.memory_bytes = state.memory_bytes;
  limits.extra_memory_bytes = state.extra_memory_bytes;
  return limits;
}

void PutLimits(const sizing::PodLimits& limits, SandboxState& state) {
  state.limited_parts.clear();
  for (const auto& [name, part] : limits.parts())
    state.limited_parts.push_back({name, part.id, ToState(part.first), ToState(part.now)});
}

uint64_t WholeSteps(uint64_t bytes) {
  return (bytes + vmm::kHotplugStep - 1) / vmm::kHotplugStep * vmm::kHotplugStep;
}

// Of the state, what deciding about a size needs.
struct Now {
  uint32_t vcpus, max_vcpus;
  uint64_t boot, ceiling, claim;
};
Now Look(const StateBook& book) {
  return book.Look([](const SandboxState& state) {
    return Now{state.vcpus, state.max_vcpus, state.boot_memory_bytes, state.max_hot_memory_bytes,
               state.claim_bytes};
  });
}

}  // namespace

void FillIn(const FirstSize& size, SandboxState& state) {
  state.vcpus = size.plan.vcpus;
  state.memory_bytes = state.boot_memory_bytes = size.plan.memory_bytes();
  state.reasons = size.plan.reasons;
  state.numa_nodes.assign(size.numa_nodes.begin(), size.numa_nodes.end());
  state.max_vcpus = size.max_vcpus;
  state.max_hot_memory_bytes = size.max_hot_memory_bytes;
  state.claim_bytes = size.claim_bytes;
  state.has_pod_limits = size.pod_limits.has_value();
  state.pod_limits = size.pod_limits ? ToState(*size.pod_limits) : persist::LimitsState();
}

laminad::v1::SizingReport ToReport(const sizing::VmPlan& plan) {
  laminad::v1::SizingReport report;
  report.set_vcpus(plan.vcpus);
  report.set_vcpus_exact(plan.vcpus_exact);
  report.set_memory_bytes(plan.memory_bytes());
  report.set_limit_nano_cpus(plan.limit_nano_cpus);
  report.set_limit_memory_bytes(plan.limit_memory_bytes);
  report.set_overhead_nano_cpus(plan.overhead_nano_cpus);
  report.set_overhead_memory_bytes(plan.overhead_memory_bytes);
  report.set_vcpus_if_rounded_per_container(plan.vcpus_if_rounded_per_container);
  for (const std::string& reason : plan.reasons) report.add_reasons(reason);
  return report;
}

std::string PodSize::id() const {
  return book_.Look([](const SandboxState& state) { return state.sandbox_id; });
}

absl::Status PodSize::ReadPod(const BundleSpec& spec) {
  plan_input_ = InputFrom(config_);
  RETURN_IF_ERROR(sizing::ApplyOverrides(spec.annotations, config_.sizing.allowed_annotations, plan_input_));
  cgroup_path_.clear();
  declared_cgroup_ = {};
  if (spec.cgroups_path.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(cgroup_path_, CgroupPath(spec.cgroups_path));
  return absl::OkStatus();
}

absl::StatusOr<FirstSize> PodSize::PlanFirst(const BundleSpec& spec) {
  MutexLock lock(mutex_);
  RETURN_IF_ERROR(ReadPod(spec));
  FirstSize first;
  first.pod_limits = spec.pod_limits;
  if (!first.pod_limits) {
    ASSIGN_OR_RETURN(first.pod_limits, sizing::LimitsFromAnnotations(spec.annotations));
  }
  limits_ = sizing::PodLimits(first.pod_limits, {});
  sizing::PlanInput input = plan_input_;
  limits_.FillIn(input);
  ASSIGN_OR_RETURN(first.plan, sizing::PlanVm(input));
  sizing::VmPlan& plan = first.plan;
  if (spec.pod_overhead) {
    const uint64_t fixed =
        static_cast<uint64_t>(std::max<int64_t>(0, spec.pod_overhead->memory_bytes.value_or(0)));
    if (plan.limit_memory_bytes > 0) declared_cgroup_.memory_bytes = plan.limit_memory_bytes + fixed;
    const sizing::CpuLimit& cpu = spec.pod_overhead->cpu;
    if (plan.limit_nano_cpus > 0 && cpu.quota.value_or(0) > 0 && cpu.period.value_or(0) > 0) {
      declared_cgroup_.nano_cpus =
          plan.limit_nano_cpus + static_cast<int64_t>(static_cast<__int128>(*cpu.quota) * 1'000'000'000 /
                                                      static_cast<__int128>(*cpu.period));
    }
    plan.reasons.push_back(
        fmt::format("the RuntimeClass's overhead.podFixed is {}; guest overhead {} and host side {} come out "
                    "of it",
                    FormatBytes(fixed), FormatBytes(plan.overhead_memory_bytes),
                    FormatBytes(config_.hypervisor.vmm_overhead_memory_bytes)));
  }
  RETURN_IF_ERROR(CheckCgroup(plan));
  first.numa_nodes = plan_input_.numa_nodes;
  first.cgroup_path = cgroup_path_;
  first.claim_bytes = plan.memory_bytes() + config_.hypervisor.vmm_overhead_memory_bytes;
  first.max_vcpus = plan.vcpus;
  if (config_.sizing.mode == "dynamic") {
    first.max_vcpus =
        std::max(plan.vcpus, std::min(plan_input_.max_vcpus, plan.vcpus + config_.sizing.hotplug_vcpus));
    uint64_t room =
        plan_input_.max_memory_bytes - std::min(plan_input_.max_memory_bytes, plan.memory_bytes());
    if (config_.sizing.hotplug_memory_bytes != 0) room = std::min(room, config_.sizing.hotplug_memory_bytes);
    first.max_hot_memory_bytes = room / vmm::kHotplugBlock * vmm::kHotplugBlock;
    if (cgroup_path_.empty() && first.max_hot_memory_bytes != 0) {
      first.plan.reasons.push_back(fmt::format(
          "no cgroup was given for the sandbox: on the host nothing keeps its VM from taking the {} "
          "that it could grow by (sizing.hotplug_memory, sizing.max_memory)",
          FormatBytes(first.max_hot_memory_bytes)));
    }
  }
  return first;
}

absl::Status PodSize::Restore(const BundleSpec& spec) {
  MutexLock lock(mutex_);
  RETURN_IF_ERROR(ReadPod(spec));
  const SandboxState state = book_.Get();
  std::map<std::string, sizing::PodLimits::Part> parts;
  for (const persist::LimitedPart& part : state.limited_parts)
    parts[part.name] = {part.id, FromState(part.first), FromState(part.now)};
  limits_ = sizing::PodLimits(
      state.has_pod_limits ? std::optional(FromState(state.pod_limits)) : std::nullopt, std::move(parts));
  return absl::OkStatus();
}

void PodSize::Attach(vmm::Vm& vm, ttrpc::Caller& agent, vmm::Accel accel) {
  MutexLock lock(mutex_);
  accel_ = accel;
  vm_ = &vm;
  agent_ = &agent;
  resizer_ = config_.sizing.mode == "dynamic" ? &vm.resizer() : nullptr;
}

void PodSize::Detach() {
  {
    MutexLock lock(mutex_);
    vm_ = nullptr;
    agent_ = nullptr;
    resizer_ = nullptr;
    detached_.NotifyAll();
  }
  threads_.Wait();
}

sizing::CgroupLimits PodSize::CgroupLimits() const {
  const sizing::CgroupLimits limits =
      cgroup_path_.empty() ? sizing::CgroupLimits() : PodCgroupLimits(kCgroupRoot, cgroup_path_);
  return limits.memory_bytes || limits.nano_cpus ? limits : declared_cgroup_;
}

uint64_t PodSize::ClaimFor(uint64_t guest_bytes) const {
  return guest_bytes + config_.hypervisor.vmm_overhead_memory_bytes;
}

absl::Status PodSize::RaiseClaim(uint64_t bytes) {
  const uint64_t claim = Look(book_).claim;
  if (bytes <= claim) return absl::OkStatus();
  return Retarget(bytes);
}

absl::Status PodSize::Retarget(uint64_t claim_bytes) {
  laminad::v1::RetargetRequest request;
  uint64_t before = 0;
  book_.Look([&](const SandboxState& state) {
    request.set_sandbox_id(state.sandbox_id);
    request.set_generation(state.claim_generation);
    before = state.claim_bytes;
  });
  request.set_bytes(claim_bytes);
  if (unshown_) *request.mutable_sizing() = ToReport(*unshown_);
  RETURN_IF_ERROR(laminad_.Retarget(request));
  unshown_.reset();
  if (claim_bytes == before) return absl::OkStatus();
  absl::Status status = Enforce(claim_bytes);
  // What the pod gave back it does not miss: a limit that stays too high costs nobody anything.
  if (!status.ok() && claim_bytes < before) {
    LogWarning("sandbox {}: {}", id(), Message(status));
    status = absl::OkStatus();
  }
  if (status.ok()) status = book_.Change([&](SandboxState& state) { state.claim_bytes = claim_bytes; });
  if (!status.ok()) {
    request.set_bytes(before);
    request.clear_sizing();
    laminad_.Retarget(request).IgnoreError();
    Enforce(before).IgnoreError();
  }
  return status;
}

absl::Status PodSize::Enforce(uint64_t claim_bytes) const {
  const auto dirs = book_.Look([](const SandboxState& state) { return state.cgroup_dirs; });
  const absl::Status limited = LimitMemory(dirs, MemoryLimit(accel_, claim_bytes));
  return absl::IsNotFound(limited) ? absl::OkStatus() : limited;
}

absl::Status PodSize::CheckCgroup(const sizing::VmPlan& plan) const {
  if (config_.sizing.cgroup_fit == "off") return absl::OkStatus();
  std::string misfit;
  misfit = sizing::CgroupMisfit(cgroup_path_.empty()
                                    ? "the pod (limits + overhead.podFixed)"
                                    : "the pod's cgroup " + cgroup_path_.substr(0, cgroup_path_.rfind('/')),
                                CgroupLimits(), plan, config_.hypervisor.vmm_overhead_memory_bytes);
  if (misfit.empty()) return absl::OkStatus();
  if (config_.sizing.cgroup_fit == "refuse") return absl::FailedPreconditionError(misfit);
  LogWarning("sandbox {}: {}", id(), misfit);
  return absl::OkStatus();
}

absl::Status PodSize::KeepLimits(const sizing::PodLimits& limits) {
  limits_ = limits;
  return book_.Record([&](SandboxState& state) { PutLimits(limits, state); });
}

void PodSize::ShowPlan(const sizing::VmPlan& plan) {
  unshown_ = plan;
  if (watching_memory_) return;
  const absl::Status started = threads_.Start(kWatchStackBytes, [this] { WatchMemory(); });
  if (!started.ok()) return LogWarning("sandbox {}: {}", id(), Message(started));
  watching_memory_ = true;
}

absl::Status PodSize::SetVcpus(uint32_t vcpus, std::chrono::milliseconds timeout) {
  agent::v1::SetVcpusRequest request;
  request.set_vcpus(vcpus);
  const auto deadline = steady_clock::now() + timeout;
  uint32_t online = 0;
  // The agent itself waits a while for a vCPU that was just plugged.
  do {
    ASSIGN_OR_RETURN(const agent::v1::SetVcpusResponse answer,
                     ttrpc::Call(*agent_, guest::kSetVcpus, request, timeout));
    online = answer.online();
    if (online == vcpus) {
      const bool known = book_.Look([&](const SandboxState& state) { return state.vcpus == vcpus; });
      return known ? absl::OkStatus() : book_.Record([&](SandboxState& state) { state.vcpus = vcpus; });
    }
  } while (steady_clock::now() < deadline);
  return MakeStatus(absl::StatusCode::kDeadlineExceeded, "{} of {} vCPUs are online in the guest", online,
                    vcpus);
}

absl::Status PodSize::GrowFor(const sizing::PodLimits& limits) {
  sizing::PlanInput input = plan_input_;
  limits.FillIn(input);
  ASSIGN_OR_RETURN(const sizing::VmPlan plan, sizing::PlanVm(input));
  if (vm_ == nullptr) return absl::FailedPreconditionError("the pod's VM does not run");
  const Now now = Look(book_);
  const uint64_t hot = plan.memory_bytes() > now.boot ? WholeSteps(plan.memory_bytes() - now.boot) : 0;
  if (resizer_ == nullptr) {
    if (plan.vcpus > now.vcpus || hot > 0) {
      LogWarning(
          "sandbox {}: its containers need {} vCPUs and {} MiB; with sizing.mode = \"static\" it keeps "
          "{} vCPUs and {} MiB",
          id(), plan.vcpus, plan.memory_mib, now.vcpus, now.boot >> 20);
    }
    return RaiseClaim(ClaimFor(now.boot));
  }
  if (plan.vcpus > now.max_vcpus || hot > now.ceiling) {
    return MakeStatus(absl::StatusCode::kOutOfRange,
                      "the pod needs {} vCPUs and {}; its VM was started for at most {} vCPUs and {} "
                      "(sizing.hotplug_cpu, sizing.hotplug_memory): only a new pod can have more",
                      plan.vcpus, FormatBytes(now.boot + hot), now.max_vcpus,
                      FormatBytes(now.boot + now.ceiling));
  }
  vmm::HotMemory memory;
  if (now.ceiling > 0) {
    ASSIGN_OR_RETURN(memory, resizer_->Memory());
  }
  const bool grows = plan.vcpus > now.vcpus || hot > memory.requested;
  const uint64_t needed = ClaimFor(now.boot + std::max(hot, memory.counted()));
  if (grows || needed > now.claim) RETURN_IF_ERROR(CheckCgroup(plan));
  RETURN_IF_ERROR(RaiseClaim(needed));
  if (!grows) {
    ShowPlan(plan);
    return absl::OkStatus();
  }
  const uint64_t wanted = std::max(hot, memory.requested);
  const absl::Status grown = GrowTo(plan, wanted);
  if (grown.ok()) {
    LogInfo("sandbox {} grows to {} vCPUs, {} MiB", id(), std::max(plan.vcpus, now.vcpus), plan.memory_mib);
    const absl::Status saved = book_.Record([&](SandboxState& state) {
      state.memory_bytes = now.boot + wanted;
      state.reasons = plan.reasons;
    });
    if (!saved.ok()) LogWarning("sandbox {}: {}", id(), Message(saved));
    ShowPlan(plan);
    return absl::OkStatus();
  }
  ShrinkToFit();  // limits_ are still the old ones
  return Annotate(grown, "grow the VM");
}

absl::Status PodSize::GrowTo(const sizing::VmPlan& plan, uint64_t hot_bytes) {
  const Now now = Look(book_);
  if (now.ceiling > 0) RETURN_IF_ERROR(resizer_->GrowMemory(hot_bytes, kGrowTimeout));
  if (plan.vcpus <= now.vcpus) return absl::OkStatus();
  // Those that were taken offline come back first: only what is missing beyond them is plugged.
  RETURN_IF_ERROR(resizer_->PlugVcpus(plan.vcpus).status());
  return SetVcpus(plan.vcpus, kGrowTimeout);
}

void PodSize::ShrinkToFit() {
  if (resizer_ == nullptr || !vm_->Alive().ok()) return;
  sizing::PlanInput input = plan_input_;
  limits_.FillIn(input);
  const absl::StatusOr<sizing::VmPlan> plan = sizing::PlanVm(input);
  if (!plan.ok()) return LogWarning("sandbox {}: {}", id(), Message(plan.status()));
  const Now now = Look(book_);
  // Asked even when the last answer was this number: a growth that failed midway may have left more online.
  if (const absl::Status offline = SetVcpus(plan->vcpus, kOfflineTimeout); !offline.ok())
    LogWarning("sandbox {}: {}", id(), Message(offline));
  if (now.ceiling > 0) {
    const uint64_t hot = plan->memory_bytes() > now.boot ? WholeSteps(plan->memory_bytes() - now.boot) : 0;
    const absl::StatusOr<vmm::HotMemory> memory = resizer_->Memory();
    absl::Status asked = memory.status();
    if (memory.ok() && hot < memory->requested) asked = resizer_->RequestMemory(hot);
    if (!asked.ok()) return LogWarning("sandbox {}: {}", id(), Message(asked));
    const bool known = book_.Look([&](const SandboxState& state) {
      return state.memory_bytes == now.boot + hot && state.reasons == plan->reasons;
    });
    const absl::Status saved = known ? absl::OkStatus() : book_.Record([&](SandboxState& state) {
      state.memory_bytes = now.boot + hot;
      state.reasons = plan->reasons;
    });
    if (!saved.ok()) LogWarning("sandbox {}: {}", id(), Message(saved));
  }
  ShowPlan(*plan);
}

// True when there is nothing to watch any more.
bool PodSize::MemoryIsSettled() {
  if (vm_ == nullptr) return true;
  const Now now = Look(book_);
  const absl::StatusOr<vmm::HotMemory> memory = now.ceiling > 0 && resizer_ != nullptr
                                                    ? resizer_->Memory()
                                                    : absl::StatusOr<vmm::HotMemory>(vmm::HotMemory());
  if (!memory.ok()) return !vm_->Alive().ok();
  const uint64_t needed = ClaimFor(now.boot + memory->counted());
  if (needed < now.claim || unshown_) {
    const absl::Status lowered = Retarget(std::min(needed, now.claim));
    if (!lowered.ok()) {
      LogWarning("sandbox {}: {}", id(), Message(lowered));
      return false;
    }
  }
  return !unshown_ && memory->plugged <= memory->requested;
}

void PodSize::WatchMemory() {
  MutexLock lock(mutex_);
  for (std::chrono::milliseconds look = kFirstLook; !MemoryIsSettled();
       look = std::min(look * 2, kLongestLook)) {
    const auto next = steady_clock::now() + look;
    while (vm_ != nullptr && detached_.WaitUntil(mutex_, next)) {
    }
  }
  watching_memory_ = false;
}

absl::Status PodSize::Admit(const std::string& id, const BundleSpec& spec,
                            const std::vector<std::string>& ended) {
  MutexLock lock(mutex_);
  sizing::PodLimits limits = limits_;
  for (const std::string& other : ended) limits.Remove(other);
  const std::string name = spec.Annotation("container-name");
  limits.Add(name.empty() ? id : name, id, spec.limits);
  RETURN_IF_ERROR(GrowFor(limits));
  return KeepLimits(limits);
}

void PodSize::Dismiss(const std::string& id) {
  MutexLock lock(mutex_);
  sizing::PodLimits limits = limits_;
  limits.Remove(id);
  const absl::Status saved = KeepLimits(limits);
  if (!saved.ok()) LogWarning("container {}: {}", id, Message(saved));
  ShrinkToFit();
}

absl::Status PodSize::Update(const std::string& id, const std::string& resources_json) {
  MutexLock lock(mutex_);
  sizing::PodLimits limits = limits_;
  if (const sizing::Limits* now = limits_.Find(id); now != nullptr) {
    ASSIGN_OR_RETURN(const sizing::Limits updated, UpdatedLimits(*now, resources_json));
    limits.Update(id, updated);
  }
  RETURN_IF_ERROR(Annotate(GrowFor(limits), "container " + id));
  agent::v1::UpdateContainerRequest request;
  request.set_container_id(id);
  request.set_resources_json(resources_json);
  absl::Status status = ttrpc::Call(*agent_, guest::kUpdateContainer, request, kAgentTimeout).status();
  if (status.ok()) status = KeepLimits(limits);
  ShrinkToFit();
  return status;
}

}  // namespace lamina::cri
