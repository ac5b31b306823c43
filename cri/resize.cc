// The sandbox's size: first planned from what is known of the pod, then moved with its containers' limits.
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "base/log.h"
#include "base/status.h"
#include "base/ttrpc/thread.h"
#include "cri/cgroup.h"
#include "cri/sandbox.h"
#include "cri/volumes.h"
#include "sizing/annotations.h"

namespace lamina::cri {
namespace {

constexpr std::chrono::seconds kLaminadTimeout{10};  // within it laminad asks balloons
constexpr std::chrono::seconds kAgentTimeout{30};
constexpr std::chrono::seconds kGrowTimeout{20};  // a busy host under emulation takes its time
constexpr std::chrono::seconds kOfflineTimeout{5};
constexpr std::chrono::milliseconds kFirstLook{100}, kLongestLook{10'000};
constexpr size_t kWatchStackBytes = 128 * 1024;

sizing::PlanInput InputFrom(const Config& config) {
  sizing::PlanInput input;
  input.overhead_nano_cpus = config.sizing.overhead_nano_cpus;
  input.overhead_memory_bytes = config.sizing.overhead_memory_bytes;
  input.default_nano_cpus = config.sizing.default_nano_cpus;
  input.default_memory_bytes = config.sizing.default_memory_bytes;
  input.min_memory_bytes = config.sizing.min_memory_bytes;
  input.max_vcpus =
      config.sizing.max_vcpus != 0 ? config.sizing.max_vcpus : static_cast<uint32_t>(get_nprocs_conf());
  struct sysinfo info {};
  sysinfo(&info);
  input.max_memory_bytes =
      config.sizing.max_memory_bytes != 0 ? config.sizing.max_memory_bytes : info.totalram * info.mem_unit;
  return input;
}

persist::LimitsState ToState(const sizing::Limits& limits) {
  return {limits.name,
          limits.cpu.quota.value_or(0),
          limits.cpu.period.value_or(0),
          limits.cpu.shares.value_or(0),
          limits.memory_bytes.value_or(0),
          limits.extra_memory_bytes};
}

uint64_t WholeSteps(uint64_t bytes) {
  return (bytes + vmm::kHotplugStep - 1) / vmm::kHotplugStep * vmm::kHotplugStep;
}

}  // namespace

absl::StatusOr<sizing::VmPlan> Sandbox::PlanFirst(const BundleSpec& spec) {
  MutexLock resize(resize_mutex_);
  plan_input_ = InputFrom(config_);
  RETURN_IF_ERROR(sizing::ApplyOverrides(spec.annotations, config_.sizing.allowed_annotations, plan_input_));
  std::optional<sizing::Limits> pod = spec.pod_limits;
  if (!pod) {
    ASSIGN_OR_RETURN(pod, sizing::LimitsFromAnnotations(spec.annotations));
  }
  limits_ = sizing::PodLimits(pod, {});
  cgroup_path_.clear();
  if (!spec.cgroups_path.empty()) {
    ASSIGN_OR_RETURN(cgroup_path_, CgroupPath(spec.cgroups_path));
  }
  declared_cgroup_ = {};
  sizing::PlanInput input = plan_input_;
  limits_.FillIn(input);
  ASSIGN_OR_RETURN(sizing::VmPlan plan, sizing::PlanVm(input));
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

  const bool dynamic = config_.sizing.mode == "dynamic";
  MutexLock lock(mutex_);
  state_.boot_memory_bytes = plan.memory_bytes();
  state_.max_vcpus = plan.vcpus;
  state_.max_hot_memory_bytes = 0;
  if (dynamic) {
    state_.max_vcpus =
        std::max(plan.vcpus, std::min(plan_input_.max_vcpus, plan.vcpus + config_.sizing.hotplug_vcpus));
    uint64_t room =
        plan_input_.max_memory_bytes - std::min(plan_input_.max_memory_bytes, plan.memory_bytes());
    if (config_.sizing.hotplug_memory_bytes != 0) room = std::min(room, config_.sizing.hotplug_memory_bytes);
    state_.max_hot_memory_bytes = room / vmm::kHotplugBlock * vmm::kHotplugBlock;
  }
  state_.has_pod_limits = pod.has_value();
  state_.pod_limits = pod ? ToState(*pod) : persist::LimitsState();
  return plan;
}

std::map<std::string, std::string> Sandbox::Info() const {
  MutexLock lock(mutex_);
  std::map<std::string, std::string> info = {{"vcpus", fmt::format("{}", state_.vcpus)},
                                             {"memory", FormatBytes(state_.memory_bytes)},
                                             {"claim", FormatBytes(state_.claim_bytes)}};
  for (const std::string& reason : state_.reasons) info["reasons"] += reason + "\n";
  return info;
}

sizing::CgroupLimits Sandbox::CgroupLimits() const {
  const sizing::CgroupLimits limits =
      cgroup_path_.empty() ? sizing::CgroupLimits() : PodCgroupLimits("/sys/fs/cgroup", cgroup_path_);
  return limits.memory_bytes || limits.nano_cpus ? limits : declared_cgroup_;
}

uint64_t Sandbox::MemoryVolumeBytes() const {
  std::map<std::string, uint64_t> all;
  for (const auto& [container, volumes] : memory_volumes_) all.insert(volumes.begin(), volumes.end());
  uint64_t sum = 0;
  for (const auto& [volume, bytes] : all) sum += bytes;
  return sum;
}

uint64_t Sandbox::ClaimFor(uint64_t guest_bytes) const {
  const uint64_t vm = guest_bytes + config_.hypervisor.vmm_overhead_memory_bytes,
                 volumes = MemoryVolumeBytes();
  if (volumes == 0) return vm;
  return std::min(vm + volumes, std::max(vm, CgroupLimits().memory_bytes.value_or(UINT64_MAX)));
}

absl::Status Sandbox::RaiseClaim(uint64_t bytes) {
  uint64_t claim;
  {
    MutexLock lock(mutex_);
    claim = state_.claim_bytes;
  }
  if (bytes <= claim) return absl::OkStatus();
  RETURN_IF_ERROR(Retarget(bytes));
  const absl::Status saved = Save();
  if (!saved.ok()) Retarget(claim).IgnoreError();
  return saved;
}

absl::Status Sandbox::CheckCgroup(const sizing::VmPlan& plan) const {
  if (config_.sizing.cgroup_fit == "off") return absl::OkStatus();
  std::string misfit;
  const uint64_t volumes = MemoryVolumeBytes();
  misfit = sizing::CgroupMisfit(cgroup_path_.empty()
                                    ? "the pod (limits + overhead.podFixed)"
                                    : "the pod's cgroup " + cgroup_path_.substr(0, cgroup_path_.rfind('/')),
                                CgroupLimits(), plan, config_.hypervisor.vmm_overhead_memory_bytes + volumes);
  if (misfit.empty()) return absl::OkStatus();
  if (volumes > 0)
    misfit += fmt::format("; {} of the host side are memory-backed volumes", FormatBytes(volumes));
  if (config_.sizing.cgroup_fit == "refuse") return absl::FailedPreconditionError(misfit);
  LogWarning("sandbox {}: {}", id_, misfit);
  return absl::OkStatus();
}

void Sandbox::KeepLimits(const sizing::PodLimits& limits) {
  limits_ = limits;
  MutexLock lock(mutex_);
  state_.limited_parts.clear();
  for (const auto& [name, part] : limits.parts())
    state_.limited_parts.push_back({name, part.id, ToState(part.first), ToState(part.now)});
}

laminad::v1::SizingReport Sandbox::Report(const sizing::VmPlan& plan) {
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

void Sandbox::ShowPlan(const sizing::VmPlan& plan) {
  unshown_ = plan;
  if (watching_memory_) return;
  const absl::Status started = ttrpc::StartThread(kWatchStackBytes, [this] { WatchMemory(); });
  if (!started.ok()) return LogWarning("sandbox {}: {}", id_, Message(started));
  watching_memory_ = true;
}

absl::Status Sandbox::Retarget(uint64_t claim_bytes) {
  laminad::v1::RetargetRequest request;
  request.set_sandbox_id(id_);
  {
    MutexLock lock(mutex_);
    request.set_generation(state_.claim_generation);
  }
  request.set_bytes(claim_bytes);
  if (unshown_) *request.mutable_sizing() = Report(*unshown_);
  RETURN_IF_ERROR(CallLaminad("Retarget", request, nullptr, kLaminadTimeout));
  unshown_.reset();
  MutexLock lock(mutex_);
  state_.claim_bytes = claim_bytes;
  return absl::OkStatus();
}

absl::Status Sandbox::SetVcpus(uint32_t vcpus, std::chrono::milliseconds timeout) {
  agent::v1::SetVcpusRequest request;
  request.set_vcpus(vcpus);
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  agent::v1::SetVcpusResponse answer;
  // The agent itself waits a while for a vCPU that was just plugged.
  do {
    RETURN_IF_ERROR(CallAgent("SetVcpus", request, &answer, timeout));
    if (answer.online() == vcpus) {
      MutexLock lock(mutex_);
      state_.vcpus = vcpus;
      return absl::OkStatus();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return MakeStatus(absl::StatusCode::kDeadlineExceeded, "{} of {} vCPUs are online in the guest",
                    answer.online(), vcpus);
}

absl::Status Sandbox::GrowFor(const sizing::PodLimits& limits) {
  sizing::PlanInput input = plan_input_;
  limits.FillIn(input);
  ASSIGN_OR_RETURN(const sizing::VmPlan plan, sizing::PlanVm(input));
  uint32_t vcpus, max_vcpus;
  uint64_t boot, ceiling, claim;
  {
    MutexLock lock(mutex_);
    vcpus = state_.vcpus;
    max_vcpus = state_.max_vcpus;
    boot = state_.boot_memory_bytes;
    ceiling = state_.max_hot_memory_bytes;
    claim = state_.claim_bytes;
  }
  const uint64_t hot = plan.memory_bytes() > boot ? WholeSteps(plan.memory_bytes() - boot) : 0;
  if (resizer_ == nullptr) {
    if (plan.vcpus > vcpus || hot > 0) {
      LogWarning(
          "sandbox {}: its containers need {} vCPUs and {} MiB; with sizing.mode = \"static\" it keeps "
          "{} vCPUs and {} MiB",
          id_, plan.vcpus, plan.memory_mib, vcpus, boot >> 20);
    }
    return RaiseClaim(ClaimFor(boot));
  }
  if (plan.vcpus > max_vcpus || hot > ceiling) {
    return MakeStatus(absl::StatusCode::kOutOfRange,
                      "the pod needs {} vCPUs and {}; its VM was started for at most {} vCPUs and {} "
                      "(sizing.hotplug_cpu, sizing.hotplug_memory): only a new pod can have more",
                      plan.vcpus, FormatBytes(boot + hot), max_vcpus, FormatBytes(boot + ceiling));
  }
  vmm::HotMemory memory;
  if (ceiling > 0) {
    ASSIGN_OR_RETURN(memory, resizer_->Memory());
  }
  const bool grows = plan.vcpus > vcpus || hot > memory.requested;
  const uint64_t needed = ClaimFor(boot + std::max(hot, memory.counted()));
  if (grows || needed > claim) RETURN_IF_ERROR(CheckCgroup(plan));
  RETURN_IF_ERROR(RaiseClaim(needed));
  if (!grows) {
    ShowPlan(plan);
    return absl::OkStatus();
  }
  const absl::Status grown = GrowTo(plan, std::max(hot, memory.requested));
  if (grown.ok()) {
    LogInfo("sandbox {} grows to {} vCPUs, {} MiB", id_, std::max(plan.vcpus, vcpus), plan.memory_mib);
    {
      MutexLock lock(mutex_);
      state_.memory_bytes = boot + std::max(hot, memory.requested);
      state_.reasons = plan.reasons;
    }
    ShowPlan(plan);
    return absl::OkStatus();
  }
  ShrinkToFit();  // limits_ are still the old ones
  return Annotate(grown, "grow the VM");
}

absl::Status Sandbox::GrowTo(const sizing::VmPlan& plan, uint64_t hot_bytes) {
  uint32_t vcpus;
  bool hot_memory;
  {
    MutexLock lock(mutex_);
    vcpus = state_.vcpus;
    hot_memory = state_.max_hot_memory_bytes > 0;
  }
  if (hot_memory) RETURN_IF_ERROR(resizer_->GrowMemory(hot_bytes, kGrowTimeout));
  if (plan.vcpus <= vcpus) return absl::OkStatus();
  // Those that were taken offline come back first: only what is missing beyond them is plugged.
  RETURN_IF_ERROR(resizer_->PlugVcpus(plan.vcpus).status());
  return SetVcpus(plan.vcpus, kGrowTimeout);
}

void Sandbox::ShrinkToFit() {
  if (resizer_ == nullptr) return;
  sizing::PlanInput input = plan_input_;
  limits_.FillIn(input);
  const absl::StatusOr<sizing::VmPlan> plan = sizing::PlanVm(input);
  if (!plan.ok()) return LogWarning("sandbox {}: {}", id_, Message(plan.status()));
  uint64_t boot, ceiling;
  if (!vm_->Alive().ok()) return;
  {
    MutexLock lock(mutex_);
    if (stopping_) return;
    boot = state_.boot_memory_bytes;
    ceiling = state_.max_hot_memory_bytes;
  }
  // Asked even when the last answer was this number: a growth that failed midway may have left more online.
  if (const absl::Status offline = SetVcpus(plan->vcpus, kOfflineTimeout); !offline.ok())
    LogWarning("sandbox {}: {}", id_, Message(offline));
  if (ceiling > 0) {
    const uint64_t hot = plan->memory_bytes() > boot ? WholeSteps(plan->memory_bytes() - boot) : 0;
    const absl::StatusOr<vmm::HotMemory> memory = resizer_->Memory();
    absl::Status asked = memory.status();
    if (memory.ok() && hot < memory->requested) asked = resizer_->RequestMemory(hot);
    if (!asked.ok()) return LogWarning("sandbox {}: {}", id_, Message(asked));
    MutexLock lock(mutex_);
    state_.memory_bytes = boot + hot;
    state_.reasons = plan->reasons;
  }
  ShowPlan(*plan);
}

// The claim follows what the guest has really given back, and laminad, should it be away, is told when it is
// back.
void Sandbox::WatchMemory() {
  std::chrono::milliseconds look = kFirstLook;
  for (;; look = std::min(look * 2, kLongestLook)) {
    {
      MutexLock resize(resize_mutex_);
      bool over;
      uint64_t boot, claim, ceiling;
      {
        MutexLock lock(mutex_);
        over = stopping_;
        boot = state_.boot_memory_bytes;
        claim = state_.claim_bytes;
        ceiling = state_.max_hot_memory_bytes;
      }
      const absl::StatusOr<vmm::HotMemory> memory =
          ceiling > 0 ? resizer_->Memory() : absl::StatusOr<vmm::HotMemory>(vmm::HotMemory());
      over = over || (!memory.ok() && !vm_->Alive().ok());
      if (!over && memory.ok()) {
        const uint64_t needed = ClaimFor(boot + memory->counted());
        absl::Status lowered;
        if (needed < claim || unshown_) {
          lowered = Retarget(std::min(needed, claim));
          if (lowered.ok()) lowered = Save();
          if (!lowered.ok()) LogWarning("sandbox {}: {}", id_, Message(lowered));
        }
        over = lowered.ok() && !unshown_ && memory->plugged <= memory->requested;
      }
      if (over) {
        watching_memory_ = false;
        return;
      }
    }
    std::this_thread::sleep_for(look);
  }
}

absl::Status Sandbox::AdmitContainer(const std::string& id, const BundleSpec& spec) {
  MutexLock resize(resize_mutex_);
  sizing::PodLimits limits = limits_;
  {
    // One that has ended needs nothing, even if it has not been deleted yet.
    MutexLock lock(mutex_);
    for (const auto& [other, container] : containers_) {
      if (container->init->status() == ProcessStatus::kStopped) limits.Remove(other);
    }
  }
  const std::string name = spec.Annotation("container-name");
  limits.Add(name.empty() ? id : name, id, spec.limits);
  std::vector<std::string> sources;
  for (const SpecMount& mount : spec.mounts) {
    if (mount.is_bind()) sources.push_back(mount.source);
  }
  memory_volumes_[id] = MemoryVolumes(sources);
  if (const absl::Status grown = GrowFor(limits); !grown.ok()) {
    memory_volumes_.erase(id);
    return grown;
  }
  KeepLimits(limits);
  return absl::OkStatus();
}

void Sandbox::DismissContainer(const std::string& id) {
  MutexLock resize(resize_mutex_);
  sizing::PodLimits limits = limits_;
  limits.Remove(id);
  memory_volumes_.erase(id);
  KeepLimits(limits);
  ShrinkToFit();
}

absl::Status Sandbox::Update(const std::string& id, const std::string& resources_json) {
  if (id == id_) return absl::OkStatus();  // the pod's cgroup is the kubelet's
  RETURN_IF_ERROR(Find(id, "").status());
  MutexLock resize(resize_mutex_);
  sizing::PodLimits limits = limits_;
  if (const sizing::Limits* now = limits_.Find(id); now != nullptr) {
    ASSIGN_OR_RETURN(const sizing::Limits updated, UpdatedLimits(*now, resources_json));
    limits.Update(id, updated);
  }
  RETURN_IF_ERROR(Annotate(GrowFor(limits), "container " + id));
  agent::v1::UpdateContainerRequest request;
  request.set_container_id(id);
  request.set_resources_json(resources_json);
  absl::Status status = CallAgent("UpdateContainer", request, nullptr, kAgentTimeout);
  if (status.ok()) {
    KeepLimits(limits);
    status = Save();
  }
  ShrinkToFit();
  return status;
}

}  // namespace lamina::cri
