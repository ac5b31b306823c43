#include "cri/sandbox.h"

#include <fcntl.h>
#include <google/protobuf/message_lite.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/clock.h"
#include "base/log.h"
#include "base/process.h"
#include "base/status.h"
#include "base/ttrpc/thread.h"
#include "cri/cgroup.h"
#include "cri/cleanup.h"
#include "cri/network.h"
#include "cri/volumes.h"
#include "sizing/annotations.h"
#include "vmm/hypervisor.h"

namespace lamina::cri {
namespace {

using std::chrono::steady_clock;

constexpr char kAgentService[] = "lamina.agent.v1.Agent";
constexpr char kLaminadService[] = "lamina.laminad.v1.Laminad";
constexpr std::chrono::seconds kLaminadTimeout{10};
constexpr std::chrono::seconds kAgentTimeout{30};
constexpr std::chrono::seconds kKillTimeout{10};
constexpr size_t kWatchStackBytes = 64 * 1024;
constexpr int kTapFd = 3;

double Seconds(steady_clock::time_point from, steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return InvalidArgument("socket path {} is too long", path);
  memcpy(address.sun_path, path.data(), path.size());
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd || connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return ErrnoStatus(errno, "connect to " + path);
  }
  return fd;
}

}  // namespace

Sandbox::~Sandbox() = default;

bool Sandbox::started() const {
  MutexLock lock(mutex_);
  return init_ != nullptr;
}

uint32_t Sandbox::vmm_pid() const {
  MutexLock lock(mutex_);
  return static_cast<uint32_t>(state_.vmm.pid);
}

bool Sandbox::empty() const {
  MutexLock lock(mutex_);
  return init_ == nullptr && containers_.empty();
}

absl::Status Sandbox::Save() {
  MutexLock lock(mutex_);
  if (removed_) return absl::OkStatus();  // a late exit must not bring the file back
  return store_.Save(state_);
}

absl::Status Sandbox::CallLaminad(const char* method, const google::protobuf::MessageLite& request,
                                  google::protobuf::MessageLite* response, std::chrono::nanoseconds timeout) {
  // A connection of its own per call: laminad may have been restarted since the last one, and calls are few.
  ASSIGN_OR_RETURN(const auto client, ttrpc::Client::Dial(config_.shim_socket(), "laminad"));
  return Annotate(client->Call(kLaminadService, method, request, response, timeout), "laminad");
}

absl::Status Sandbox::CallAgent(const char* method, const google::protobuf::MessageLite& request,
                                google::protobuf::MessageLite* response, std::chrono::nanoseconds timeout) {
  if (agent_ == nullptr) return absl::FailedPreconditionError("the pod's VM does not run");
  agent::v1::Empty empty;
  return agent_->Call(kAgentService, method, request, response != nullptr ? response : &empty, timeout);
}

absl::Status Sandbox::ClaimMemory(const BundleSpec& spec, laminad::v1::ClaimResponse& claim) {
  ASSIGN_OR_RETURN(const sizing::VmPlan plan, PlanFirst(spec));

  laminad::v1::ClaimRequest request;
  request.set_sandbox_id(id_);
  request.set_pod_namespace(spec.Annotation("sandbox-namespace"));
  request.set_pod_name(spec.Annotation("sandbox-name"));
  request.set_pod_uid(spec.Annotation("sandbox-uid"));
  request.set_bytes(plan.memory_bytes() + config_.hypervisor.vmm_overhead_memory_bytes);
  request.set_shim_pid(getpid());
  request.set_shim_start_time(ProcessStartTime(getpid()).value_or(0));
  *request.mutable_sizing() = Report(plan);
  const sizing::NumaNodes& nodes = plan_input_.numa_nodes;
  request.mutable_numa_nodes()->Add(nodes.begin(), nodes.end());
  const absl::Status claimed = CallLaminad("Claim", request, &claim, kLaminadTimeout);
  if (!claimed.ok() && !nodes.empty()) {
    return Annotate(claimed, fmt::format("annotation {} (\"{}\")", sizing::kNumaNodesAnnotation,
                                         sizing::FormatNumaNodes(nodes)));
  }
  RETURN_IF_ERROR(claimed);

  MutexLock lock(mutex_);
  state_.pod_name = request.pod_name();
  state_.pod_namespace = request.pod_namespace();
  state_.pod_uid = request.pod_uid();
  state_.vcpus = plan.vcpus;
  state_.memory_bytes = plan.memory_bytes();
  state_.numa_nodes.assign(nodes.begin(), nodes.end());
  state_.reasons = plan.reasons;
  state_.claim_bytes = request.bytes();
  state_.claim_generation = claim.generation();
  state_.shim = {request.shim_pid(), request.shim_start_time()};
  return absl::OkStatus();
}

absl::Status Sandbox::Start(const std::string& id, const std::string& bundle) {
  if (!persist::IsSafeId(id)) return InvalidArgument("sandbox id \"{}\" is not safe as a file name", id);
  ASSIGN_OR_RETURN(const BundleSpec spec, ReadSpec(bundle));
  if (spec.Annotation("container-type").empty()) {
    return InvalidArgument(
        "{}/config.json has no annotation io.kubernetes.cri.container-type: Lamina runs the pods that "
        "containerd's CRI plugin makes, no single container",
        bundle);
  }
  return StartPod(id, bundle, spec);
}

absl::Status Sandbox::StartPod(const std::string& id, const std::string& bundle, const BundleSpec& spec) {
  MutexLock build(build_mutex_);
  if (started()) return MakeStatus(absl::StatusCode::kAlreadyExists, "sandbox {} runs already", id);
  if (!spec.has_network_namespace) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "pod {}/{} asks for the host's network (hostNetwork: true), which a virtual machine "
                      "cannot share; use another "
                      "runtime class for it",
                      spec.Annotation("sandbox-namespace"), spec.Annotation("sandbox-name"));
  }
  {
    MutexLock lock(mutex_);
    id_ = id;
    state_ = persist::SandboxState();
    state_.sandbox_id = id;
    state_.bundle = bundle;
    state_.netns_path = spec.netns_path;
    state_.tap_name = kTapName;
    state_.runtime_dir = RuntimeDir(config_, id);
  }
  laminad::v1::ReadyRequest ready;
  const absl::Status status = BuildVm(spec, ready);
  if (!status.ok()) {
    LogError("sandbox {}: {}", id, Message(status));
    persist::SandboxState state;
    {
      MutexLock lock(mutex_);
      state = state_;
    }
    agent_.reset();
    mux_.reset();
    CleanUpSandbox(config_, state).IgnoreError();
    resizer_ = nullptr;
    vm_.reset();
    return status;
  }
  {
    MutexLock lock(mutex_);
    init_ = std::make_shared<Process>(id, "", StdioPaths(), nullptr);
    init_->SetPid(static_cast<uint32_t>(vm_->pid()));
  }
  const absl::Status told = CallLaminad("Ready", ready, nullptr, kLaminadTimeout);
  if (!told.ok()) LogWarning("sandbox {}: {}", id, Message(told));
  return ttrpc::StartThread(kWatchStackBytes, [this] { WatchVm(); });
}

absl::Status Sandbox::BuildVm(const BundleSpec& spec, laminad::v1::ReadyRequest& ready) {
  const auto begin = steady_clock::now();
  laminad::v1::ClaimResponse claim;
  RETURN_IF_ERROR(ClaimMemory(spec, claim));
  RETURN_IF_ERROR(Save());  // creating: from here a cleanup finds everything
  const auto claimed = steady_clock::now();

  ASSIGN_OR_RETURN(const vmm::Accel accel, vmm::Hypervisor::Qemu().ChooseAccel(config_));
  std::string dir;
  uint64_t memory_bytes;
  uint32_t vcpus;
  {
    MutexLock lock(mutex_);
    dir = state_.runtime_dir;
    memory_bytes = state_.memory_bytes;
    vcpus = state_.vcpus;
  }
  RETURN_IF_ERROR(FileSystem::Real().MakeDirectories(dir, 0700));
  RETURN_IF_ERROR(MakeSharedDir(dir + "/shared"));
  if (spec.files) RETURN_IF_ERROR(WritePodFiles(PodFilesDir(dir), *spec.files));
  HostCgroup cgroup;
  if (!cgroup_path_.empty()) {
    ASSIGN_OR_RETURN(cgroup, MakeHostCgroup("/sys/fs/cgroup", cgroup_path_));
    MutexLock lock(mutex_);
    state_.cgroup_dirs = cgroup.dirs;
  }
  PodNetwork network;
  if (!spec.netns_path.empty()) {
    ASSIGN_OR_RETURN(network, SetUpNetwork(spec.netns_path));
    MutexLock lock(mutex_);
    state_.mac = network.mac;
  }
  vmm::VirtiofsdOptions volumes;
  volumes.program = config_.hypervisor.virtiofsd;
  volumes.shared_dir = dir + "/shared";
  volumes.socket = dir + "/virtiofsd.sock";
  volumes.log_path = dir + "/virtiofsd.log";
  volumes.cgroup_procs_files = cgroup.procs_files();
  volumes.timeout = kLaminadTimeout;
  ASSIGN_OR_RETURN(vmm::VirtiofsdProcess virtiofsd, vmm::Hypervisor::Qemu().StartVirtiofsd(volumes));
  virtiofsd_pidfd_ = std::move(virtiofsd.pidfd);
  {
    MutexLock lock(mutex_);
    state_.virtiofsd = {virtiofsd.pid, virtiofsd.start_time};
  }
  RETURN_IF_ERROR(Save());
  const auto prepared = steady_clock::now();

  vmm::VmSpec vm;
  vm.name = id_;
  vm.qemu = config_.hypervisor.qemu;
  vm.accel = accel;
  vm.firmware = config_.hypervisor.firmware;
  vm.kernel = config_.kernel();
  vm.initramfs = config_.initramfs();
  vm.extra_kernel_args = config_.hypervisor.kernel_args;
  vm.vcpus = vcpus;
  vm.memory_bytes = memory_bytes;
  {
    MutexLock lock(mutex_);
    vm.max_vcpus = state_.max_vcpus;
    vm.max_hot_memory_bytes = state_.max_hot_memory_bytes;
    vm.numa_nodes = state_.numa_nodes;
  }
  vm.hotplug_bytes = config_.layers.arena_bytes * config_.layers.max_arenas_per_pod;
  vm.hotplug_ports = config_.hypervisor.hotplug_ports;
  vm.runtime_dir = dir;
  vm.virtiofs_socket = virtiofsd.socket;
  for (const laminad::v1::Arena& arena : claim.boot_arenas()) {
    if (vm.boot_arenas.size() < 8) vm.boot_arenas.push_back({arena.id(), arena.path(), arena.bytes()});
  }
  vmm::StartOptions options;
  options.netns_path = spec.netns_path;
  options.cgroup_procs_files = cgroup.procs_files();
  if (network.present) {
    vm.tap_fd = kTapFd;
    vm.mac = network.mac;
    options.tap_fd = network.tap.get();
  }
  ASSIGN_OR_RETURN(vm_, vmm::Hypervisor::Qemu().Start(vm, options));
  if (config_.sizing.mode == "dynamic") resizer_ = &vm_->resizer();
  {
    MutexLock lock(mutex_);
    state_.vmm = {vm_->pid(), vm_->start_time()};
    for (const vmm::ArenaDevice& arena : vm.boot_arenas) state_.arenas.push_back(arena.id);
  }
  RETURN_IF_ERROR(Save());
  laminad::v1::StartedRequest started;
  started.set_sandbox_id(id_);
  started.set_generation(claim.generation());
  started.set_vmm_pid(vm_->pid());
  started.set_vmm_start_time(vm_->start_time());
  RETURN_IF_ERROR(CallLaminad("Started", started, nullptr, kLaminadTimeout));
  const auto launched = steady_clock::now();

  ASSIGN_OR_RETURN(agent_, ttrpc::Client::Dial(vmm::RpcSocket(dir), "the guest's agent"));
  ASSIGN_OR_RETURN(UniqueFd stdio, ConnectUnix(vmm::StdioSocket(dir)));
  mux_ = guest::StdioMux::Create(std::move(stdio), false);
  agent::v1::HelloRequest hello;
  agent::v1::HelloResponse answer;
  hello.set_protocol_version(1);
  hello.set_host_unix_nanos(UnixNanos(Clock::Real().Wall()));
  std::string seed(64, '\0');
  if (const UniqueFd random(open("/dev/urandom", O_RDONLY | O_CLOEXEC));
      read(random.get(), seed.data(), seed.size()) > 0) {
    hello.set_random_seed(seed);
  }
  absl::Status greeted =
      CallAgent("Hello", hello, &answer, std::chrono::seconds(config_.hypervisor.boot_timeout_seconds));
  if (!greeted.ok()) {
    const absl::Status alive = vm_->Alive();
    return Annotate(alive.ok() ? greeted : alive, "boot the VM");
  }
  if (answer.protocol_version() != 1) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "the guest image speaks protocol {}, this shim 1; rebuild the guest image",
                      answer.protocol_version());
  }
  const auto answered = steady_clock::now();

  agent::v1::ConfigureSandboxRequest configure = network.config;
  configure.set_sandbox_id(id_);
  configure.set_hostname(spec.hostname);
  for (const auto& [key, value] : spec.sysctls) (*configure.mutable_sysctls())[key] = value;
  configure.set_shared_tag(vm.virtiofs_tag);
  RETURN_IF_ERROR(
      Annotate(CallAgent("ConfigureSandbox", configure, nullptr, kAgentTimeout), "configure the guest"));
  {
    MutexLock lock(mutex_);
    state_.life_cycle = persist::LifeCycle::kReady;
  }
  RETURN_IF_ERROR(Save());
  const auto end = steady_clock::now();

  ready.set_sandbox_id(id_);
  ready.set_generation(claim.generation());
  ready.set_guest_mem_total_bytes(answer.mem_total_bytes());
  ready.set_state_path(store_.Path(id_));
  auto& phases = *ready.mutable_phase_seconds();
  const double boot = Seconds(launched, answered);
  // The guest's own clock tells the kernel's share; it is not trusted beyond the whole.
  const double kernel = std::min(boot, std::max(0.0, answer.agent_started_boot_seconds()));
  phases["claim"] = Seconds(begin, claimed);
  phases["prepare"] = Seconds(claimed, prepared);
  phases["qemu"] = Seconds(prepared, launched);
  phases["kernel"] = kernel;
  phases["agent"] = boot - kernel;
  phases["configure"] = Seconds(answered, end);
  phases["total"] = Seconds(begin, end);
  LogInfo("sandbox {} ready in {:.3f} s: {} vCPUs, {} MiB", id_, phases["total"], vcpus, memory_bytes >> 20);
  return absl::OkStatus();
}

void Sandbox::WatchVm() {
  if (!vm_->WaitExit(virtiofsd_pidfd_.get())) {
    // Whoever touches a volume in the guest now waits for ever, and cannot be killed.
    LogError("sandbox {}: its virtiofsd has ended, and the volumes with it: ending the VM", id_);
    const absl::Status killed = vm_->Kill(kKillTimeout);
    if (!killed.ok()) LogError("sandbox {}: {}", id_, Message(killed));
    vm_->WaitExit(-1);
  }
  std::vector<std::shared_ptr<Process>> processes;
  bool stopping;
  {
    MutexLock lock(mutex_);
    stopping = stopping_;
    for (const auto& [id, container] : containers_) {
      for (const auto& [exec_id, exec] : container->execs) processes.push_back(exec);
      processes.push_back(container->init);
    }
    processes.push_back(init_);
  }
  if (!stopping) LogError("sandbox {}: its VM is gone: {}", id_, Message(vm_->Alive()));
  const ExitInfo lost{255, UnixNanos(Clock::Real().Wall())};
  for (const auto& process : processes) {
    ExitInfo exit = lost;
    if (stopping && process->container_id == id_) exit.status = 0;
    if (process->SetExited(exit)) PublishExit(*process, exit);
  }
}

void Sandbox::PublishExit(const Process& process, const ExitInfo& exit) {
  containerd::TaskExit event;
  event.set_container_id(process.container_id);
  event.set_id(process.exec_id.empty() ? process.container_id : process.exec_id);
  event.set_pid(process.pid());
  event.set_exit_status(exit.status);
  event.mutable_exited_at()->set_seconds(exit.unix_nanos / 1'000'000'000);
  event.mutable_exited_at()->set_nanos(static_cast<int32_t>(exit.unix_nanos % 1'000'000'000));
  events_.Publish("/tasks/exit", "containerd.events.TaskExit", event);
}

absl::Status Sandbox::StopVm() {
  {
    MutexLock lock(mutex_);
    if (stopping_) return absl::OkStatus();
    stopping_ = true;
    state_.life_cycle = persist::LifeCycle::kStopping;
  }
  const absl::Status saved = Save();
  if (!saved.ok()) LogWarning("sandbox {}: {}", id_, Message(saved));
  // A guest that still answers writes back what it holds; one that does not is not waited for.
  if (vm_->Alive().ok())
    CallAgent("Shutdown", agent::v1::Empty(), nullptr, std::chrono::seconds(2)).IgnoreError();
  return vm_->Kill(kKillTimeout);
}

absl::StatusOr<std::shared_ptr<Process>> Sandbox::Find(const std::string& id,
                                                       const std::string& exec_id) const {
  MutexLock lock(mutex_);
  if (id == id_ && exec_id.empty() && init_ != nullptr) return init_;
  const auto it = containers_.find(id);
  if (it == containers_.end()) return MakeStatus(absl::StatusCode::kNotFound, "container {}: not found", id);
  if (exec_id.empty()) return it->second->init;
  const auto exec = it->second->execs.find(exec_id);
  if (exec == it->second->execs.end())
    return MakeStatus(absl::StatusCode::kNotFound, "exec {} of container {}: not found", exec_id, id);
  return exec->second;
}

std::string Sandbox::BundleOf(const std::string& id) const {
  MutexLock lock(mutex_);
  if (id == id_) return state_.bundle;
  const auto it = containers_.find(id);
  return it == containers_.end() ? std::string() : it->second->bundle;
}

}  // namespace lamina::cri
