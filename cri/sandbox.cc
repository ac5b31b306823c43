#include "cri/sandbox.h"

#include <unistd.h>

#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "base/process.h"
#include "base/safe_id.h"
#include "base/status.h"
#include "base/units.h"
#include "cri/cleanup.h"
#include "cri/host_stats.h"
#include "cri/messages.h"
#include "cri/network.h"
#include "sizing/annotations.h"

namespace lamina::cri {
namespace {

using persist::SandboxState;
using std::chrono::steady_clock;

constexpr size_t kWatchStackBytes = 64 * 1024;
// The VM's end has been seen by the kernel; what remains is ours to do.
constexpr std::chrono::seconds kEndTimeout{30};

bool Passed(Deadline deadline) { return deadline && steady_clock::now() >= *deadline; }

}  // namespace

Sandbox::Seams Sandbox::Seams::Real(const Config& config) {
  return {LaminadClient(config.shim_socket()), VmDoors::Real()};
}

Sandbox::Sandbox(Config config, EventPublisher& events, Seams seams)
    : config_(std::move(config)),
      events_(events),
      laminad_(seams.laminad),
      book_(FileSystem::Real(), config_.paths.state_dir),
      vm_(config_, book_, laminad_, seams.doors, [this](const absl::Status& why) { EndPod(why); }),
      size_(config_, book_, laminad_),
      layers_(config_.layers.max_arenas_per_pod, book_, laminad_),
      sockets_(config_.volumes.sockets),
      disks_(book_),
      volumes_(book_, sockets_, config_.volumes.empty_dir == "disk" ? &disks_ : nullptr,
               config_.volumes.empty_dir_size_bytes),
      containers_({config_, book_, events_, vm_, size_, layers_, volumes_, disks_,
                   [this](const absl::Status& why) { EndPod(why); }, seams.kill_bound}) {}

Sandbox::~Sandbox() {
  containers_.GiveUp();
  vm_.Abort();
  vm_.Kill().IgnoreError();
}

std::string Sandbox::id() const {
  return book_.Look([](const SandboxState& state) { return state.sandbox_id; });
}

std::shared_ptr<Process> Sandbox::process() const {
  MutexLock lock(mutex_);
  return process_;
}

uint32_t Sandbox::vmm_pid() const {
  return static_cast<uint32_t>(book_.Look([](const SandboxState& state) { return state.vmm.pid; }));
}

agent::v1::ContainerStats Sandbox::Stats() const {
  return HostStats(book_.Look([](const SandboxState& state) {
    return HostProcesses{state.vmm.pid, state.virtiofsd.pid, state.claim_bytes};
  }));
}

std::map<std::string, std::string> Sandbox::Info() const {
  const SandboxState state = book_.Get();
  std::map<std::string, std::string> info = {{"vcpus", fmt::format("{}", state.vcpus)},
                                             {"memory", FormatBytes(state.memory_bytes)},
                                             {"claim", FormatBytes(state.claim_bytes)}};
  for (const std::string& reason : state.reasons) info["reasons"] += reason + "\n";
  MutexLock lock(mutex_);
  if (!end_reason_.empty()) info["ended"] = end_reason_;
  return info;
}

bool Sandbox::IsEmpty(std::function<void()> later) {
  MutexLock lock(mutex_);
  if (phase_ == Phase::kNone || phase_ == Phase::kGone) return containers_.empty();
  if (phase_ == Phase::kStarting && given_up_) when_empty_ = std::move(later);
  return false;
}

void Sandbox::Enter(Phase phase) {
  std::function<void()> then;
  {
    MutexLock lock(mutex_);
    phase_ = phase;
    if (phase == Phase::kNone || phase == Phase::kGone) {
      process_.reset();
      then = std::exchange(when_empty_, nullptr);
    }
    changed_.NotifyAll();
  }
  if (then) then();
}

bool Sandbox::AwaitStarted(Deadline deadline) {
  while (phase_ == Phase::kStarting) {
    if (!deadline) {
      changed_.Wait(mutex_);
    } else if (!changed_.WaitUntil(mutex_, *deadline) && phase_ == Phase::kStarting) {
      return false;
    }
  }
  return true;
}

absl::Status Sandbox::Start(const std::string& id, const std::string& bundle, Deadline deadline) {
  if (!IsSafeId(id)) return InvalidArgument("sandbox id \"{}\" is not safe as a file name", id);
  ASSIGN_OR_RETURN(const BundleSpec spec, ReadSpec(bundle));
  const std::string type = spec.Annotation("container-type");
  if (type.empty()) {
    return InvalidArgument(
        "{}/config.json has no annotation io.kubernetes.cri.container-type: Lamina runs the pods that "
        "containerd's CRI plugin makes, no single container",
        bundle);
  }
  if (type != "sandbox")
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "container {}: its sandbox does not run", id);
  return StartPod(id, bundle, spec, deadline);
}

absl::Status Sandbox::StartPod(const std::string& id, const std::string& bundle, const BundleSpec& spec,
                               Deadline deadline) {
  if (!spec.has_network_namespace) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "pod {}/{} asks for the host's network (hostNetwork: true), which a virtual machine "
                      "cannot share; use another runtime class for it",
                      spec.Annotation("sandbox-namespace"), spec.Annotation("sandbox-name"));
  }
  {
    MutexLock lock(mutex_);
    if (!AwaitStarted(deadline))
      return MakeStatus(absl::StatusCode::kDeadlineExceeded, "sandbox {} is still being started", id);
    if (phase_ == Phase::kGone)
      return MakeStatus(absl::StatusCode::kFailedPrecondition, "sandbox {} is gone; a shim runs one pod", id);
    if (phase_ != Phase::kNone)
      return MakeStatus(absl::StatusCode::kAlreadyExists, "sandbox {} runs already", this->id());
    phase_ = Phase::kStarting;
  }
  SandboxState state;
  state.sandbox_id = id;
  state.bundle = bundle;
  state.pod_name = spec.Annotation("sandbox-name");
  state.pod_namespace = spec.Annotation("sandbox-namespace");
  state.pod_uid = spec.Annotation("sandbox-uid");
  state.netns_path = spec.netns_path;
  state.has_pod_files = spec.files.has_value();
  state.tap_name = kTapName;
  state.runtime_dir = RuntimeDir(config_, id);
  state.boot_id = BootId();
  state.shim = {getpid(), ProcessStartTime(getpid()).value_or(0)};
  book_.Restore(std::move(state));

  laminad::v1::ReadyRequest ready;
  absl::Status status = Build(spec, deadline, ready);
  if (status.ok() && Passed(deadline))
    status = absl::DeadlineExceededError("the pod was not ready within the time that its caller waits");
  if (status.ok()) status = BeginRunning();
  if (!status.ok()) {
    LogError("sandbox {}: {}", id, Message(status));
    book_.Close();
    CleanUpSandbox(config_, laminad_, book_.Get()).IgnoreError();
    size_.Detach();
    vm_.Drop();
    bool given_up;
    {
      MutexLock lock(mutex_);
      given_up = given_up_;
    }
    Enter(given_up ? Phase::kGone : Phase::kNone);
    return status;
  }
  const absl::Status told = laminad_.Ready(ready);
  if (!told.ok()) LogWarning("sandbox {}: {}", id, Message(told));
  return absl::OkStatus();
}

absl::Status Sandbox::Build(const BundleSpec& spec, Deadline deadline, laminad::v1::ReadyRequest& ready) {
  const auto begin = steady_clock::now();
  ASSIGN_OR_RETURN(const FirstSize size, size_.PlanFirst(spec));
  const SandboxState state = book_.Get();
  laminad::v1::ClaimRequest request;
  request.set_sandbox_id(state.sandbox_id);
  request.set_pod_namespace(state.pod_namespace);
  request.set_pod_name(state.pod_name);
  request.set_pod_uid(state.pod_uid);
  request.set_bytes(size.claim_bytes);
  request.set_shim_pid(state.shim.pid);
  request.set_shim_start_time(state.shim.start_time);
  *request.mutable_sizing() = ToReport(size.plan);
  request.mutable_numa_nodes()->Add(size.numa_nodes.begin(), size.numa_nodes.end());
  const auto claim = laminad_.Claim(request);
  if (!claim.ok() && !size.numa_nodes.empty()) {
    return Annotate(claim.status(), fmt::format("annotation {} (\"{}\")", sizing::kNumaNodesAnnotation,
                                                sizing::FormatNumaNodes(size.numa_nodes)));
  }
  RETURN_IF_ERROR(claim.status());
  // From here a clean-up finds everything, in this process or another.
  const auto edit = [&](SandboxState& now) {
    FillIn(size, now);
    now.claim_generation = claim->generation();
  };
  if (const absl::Status saved = book_.Change(edit); !saved.ok()) {
    // The clean-up gives back the claim of the memory's state.
    book_.Close();
    book_.Record(edit).IgnoreError();
    return saved;
  }
  const auto claimed = steady_clock::now();
  RETURN_IF_ERROR(vm_.Start(spec, size, *claim, deadline, ready));
  ready.set_sandbox_id(state.sandbox_id);
  ready.set_generation(claim->generation());
  ready.set_state_path(book_.path());
  const auto seconds = [](auto duration) { return std::chrono::duration<double>(duration).count(); };
  auto& phases = *ready.mutable_phase_seconds();
  phases["claim"] = seconds(claimed - begin);
  phases["total"] = seconds(steady_clock::now() - begin);
  LogInfo("sandbox {} ready in {:.3f} s: {} vCPUs, {} MiB", state.sandbox_id, phases["total"],
          size.plan.vcpus, size.plan.memory_mib);
  return absl::OkStatus();
}

// A pod whose end nobody could watch does not begin.
absl::Status Sandbox::BeginRunning() {
  size_.Attach(vm_.vm(), vm_.agent(), vm_.accel());
  layers_.Attach(vm_.vm(), vm_.agent());
  sockets_.Attach(vm_.agent(), vm_.mux(), [this] { return vm_.Alive().ok(); });
  disks_.Attach(vm_.vm(), vm_.agent());
  volumes_.Attach(vm_.agent());
  {
    MutexLock lock(mutex_);
    if (given_up_) return absl::CancelledError("the pod was stopped while it started");
    const SandboxState state = book_.Get();
    process_ = std::make_shared<Process>(state.sandbox_id, "", state.bundle, StdioPaths(), nullptr);
    process_->SetPid(static_cast<uint32_t>(state.vmm.pid));
    phase_ = Phase::kRunning;
    changed_.NotifyAll();
  }
  const absl::Status watched = threads_.Start(kWatchStackBytes, [this] { WatchVm(); });
  if (!watched.ok()) {
    MutexLock lock(mutex_);
    phase_ = Phase::kStarting;
    process_.reset();
  }
  return watched;
}

void Sandbox::WatchVm() {
  vm_.WaitEnd();
  bool stopping;
  std::shared_ptr<Process> process;
  std::string why;
  {
    MutexLock lock(mutex_);
    stopping = phase_ == Phase::kStopping;
    process = process_;
    if (!stopping && end_reason_.empty()) end_reason_ = Message(vm_.Alive());
    why = end_reason_;
  }
  if (!stopping) LogError("sandbox {}: its VM is gone: {}", id(), why);
  size_.Detach();
  const ExitInfo lost{255, UnixNanos(Clock::Real().Wall())};
  containers_.EndAll(lost);
  const ExitInfo exit{stopping ? 0 : lost.status, lost.unix_nanos};
  if (process->SetExited(exit))
    events_.Publish("/tasks/exit", "containerd.events.TaskExit", ExitEvent(*process, process->pid(), exit));
}

void Sandbox::EndPod(const absl::Status& why) {
  {
    MutexLock lock(mutex_);
    if (phase_ != Phase::kRunning) return;
    if (end_reason_.empty()) end_reason_ = Message(why);
  }
  LogError("sandbox {}: ending the VM: {}", id(), Message(why));
  const absl::Status killed = vm_.Kill();
  if (!killed.ok()) LogError("sandbox {}: {}", id(), Message(killed));
}

absl::Status Sandbox::Stop(Deadline deadline) {
  bool farewell = false;
  {
    MutexLock lock(mutex_);
    if (phase_ == Phase::kStarting) {
      given_up_ = true;
      vm_.Abort();
      if (!AwaitStarted(deadline))
        return MakeStatus(absl::StatusCode::kDeadlineExceeded, "sandbox {}: its start is still being undone",
                          id());
    }
    if (phase_ == Phase::kNone || phase_ == Phase::kGone) return absl::OkStatus();
    farewell = phase_ == Phase::kRunning;
    phase_ = Phase::kStopping;
  }
  containers_.GiveUp();
  if (!farewell) return vm_.Kill();
  const absl::Status saved =
      book_.Record([](SandboxState& state) { state.life_cycle = persist::LifeCycle::kStopping; });
  if (!saved.ok()) LogWarning("sandbox {}: {}", id(), Message(saved));
  return vm_.Stop();
}

absl::StatusOr<Deleted> Sandbox::Delete(Deadline deadline) {
  MutexLock deleting(delete_mutex_);
  std::shared_ptr<Process> process = this->process();
  RETURN_IF_ERROR(Stop(deadline));
  if (process == nullptr) process = this->process();
  if (process == nullptr) {
    MutexLock lock(mutex_);
    // A start that was given up has left nothing.
    if (given_up_) return Deleted{0, {137, UnixNanos(Clock::Real().Wall())}};
    return MakeStatus(absl::StatusCode::kNotFound, "sandbox {}: not found", id());
  }
  const auto latest = steady_clock::now() + kEndTimeout;
  if (!process->WaitExitUntil(deadline ? std::min(*deadline, latest) : latest))
    return MakeStatus(absl::StatusCode::kDeadlineExceeded, "sandbox {}: its VM has not ended yet", id());
  book_.Close();
  RETURN_IF_ERROR(CleanUpSandbox(config_, laminad_, book_.Get()));
  Enter(Phase::kGone);
  return Deleted{process->pid(), process->exit().value_or(ExitInfo())};
}

}  // namespace lamina::cri
