#include "cri/pod_vm.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "base/file_system.h"
#include "base/log.h"
#include "base/process.h"
#include "base/status.h"
#include "base/tsc.h"
#include "base/ttrpc/client.h"
#include "base/units.h"
#include "base/unix_socket.h"
#include "cri/cgroup.h"
#include "cri/host_limits.h"
#include "cri/network.h"
#include "cri/pod_files.h"
#include "cri/volumes.h"
#include "guest/protocol/contract.h"
#include "vmm/qemu_command.h"

namespace lamina::cri {
namespace {

using persist::SandboxState;
using std::chrono::steady_clock;

constexpr std::chrono::seconds kAgentTimeout{30};
constexpr std::chrono::seconds kFarewell{2};
constexpr std::chrono::seconds kKillTimeout{10};
constexpr size_t kMaxBootArenas = 8;
constexpr char kCgroupRoot[] = "/sys/fs/cgroup";

}  // namespace

// What the steps of one start hand on.
struct PodVm::Recipe {
  const BundleSpec& spec;
  const FirstSize& size;
  const laminad::v1::ClaimResponse& claim;
  const Deadline deadline;
  laminad::v1::ReadyRequest& ready;
  SandboxState state;  // as it was at the start
  HostCgroup cgroup;
  PodNetwork network;
  vmm::VmSpec vm;
};

VmDoors VmDoors::Real() {
  return {vmm::Hypervisor::Qemu(),
          [](const std::string& path) -> absl::StatusOr<std::unique_ptr<ttrpc::Caller>> {
            return ttrpc::Client::Dial(path, "the guest's agent");
          },
          [](const std::string& path) { return ConnectUnix(path); }};
}

PodVm::PodVm(const Config& config, StateBook& book, LaminadClient& laminad, VmDoors doors,
             std::function<void(const absl::Status&)> given_up)
    : config_(config),
      book_(book),
      laminad_(laminad),
      doors_(std::move(doors)),
      abort_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      link_({.dial = [this] { return doors_.dial_agent(rpc_socket_); },
             .alive = [this] { return Alive(); },
             .given_up = std::move(given_up)}) {}

PodVm::~PodVm() = default;

bool PodVm::aborted() const {
  MutexLock lock(mutex_);
  return aborted_;
}

void PodVm::Abort() {
  {
    MutexLock lock(mutex_);
    aborted_ = true;
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(abort_.get(), &one, sizeof one);
  link_.Close();
}

absl::Status PodVm::Start(const BundleSpec& spec, const FirstSize& size,
                          const laminad::v1::ClaimResponse& claim, Deadline deadline,
                          laminad::v1::ReadyRequest& ready) {
  struct Step {
    const char* phase;
    absl::Status (PodVm::*run)(Recipe&);
  };
  constexpr std::array kSteps = {
      Step{"prepare", &PodVm::MakeDirectories},
      Step{"prepare", &PodVm::MakeCgroup},
      Step{"prepare", &PodVm::MakeNetwork},
      Step{"prepare", &PodVm::ShareFiles},
      Step{"qemu", &PodVm::LaunchVm},
      Step{"boot", &PodVm::GreetAgent},
      Step{"configure", &PodVm::ConfigureGuest},
  };
  Recipe recipe{spec, size, claim, deadline, ready, book_.Get(), {}, {}, {}};
  rpc_socket_ = vmm::RpcSocket(recipe.state.runtime_dir);
  auto& phases = *ready.mutable_phase_seconds();
  for (const Step& step : kSteps) {
    if (aborted()) return absl::CancelledError("the pod is being stopped while it starts");
    const auto begin = steady_clock::now();
    const absl::Status status = (this->*step.run)(recipe);
    if (!status.ok())
      return aborted() ? absl::CancelledError("the pod is being stopped while it starts") : status;
    phases[step.phase] += std::chrono::duration<double>(steady_clock::now() - begin).count();
  }
  // The guest's own clock tells the kernel's share of the boot; it is not trusted beyond the whole.
  const double boot = phases["boot"], kernel = std::clamp(phases["kernel"], 0.0, boot);
  phases["kernel"] = kernel;
  phases["agent"] = boot - kernel;
  phases.erase("boot");
  return absl::OkStatus();
}

absl::Status PodVm::MakeDirectories(Recipe& recipe) {
  const std::string& dir = recipe.state.runtime_dir;
  ASSIGN_OR_RETURN(accel_, doors_.hypervisor.ChooseAccel(config_));
  recipe.vm.accel = accel_;
  recipe.vm.tsc_khz = TscKhz();
  RETURN_IF_ERROR(FileSystem::Real().MakeDirectories(dir, 0700));
  return MakeSharedDir(dir + "/shared");
}

absl::Status PodVm::MakeCgroup(Recipe& recipe) {
  if (recipe.size.cgroup_path.empty()) return absl::OkStatus();
  // In the state before they exist: a shim that dies in between leaves none that nobody knows.
  const HostCgroup planned = HostCgroupAt(kCgroupRoot, recipe.size.cgroup_path);
  RETURN_IF_ERROR(book_.Change([&](SandboxState& state) { state.cgroup_dirs = planned.dirs; }));
  ASSIGN_OR_RETURN(recipe.cgroup, MakeHostCgroup(kCgroupRoot, recipe.size.cgroup_path));
  RETURN_IF_ERROR(LimitTasks(recipe.cgroup.dirs, TaskLimit(recipe.size.max_vcpus)));
  const absl::Status limited = LimitMemory(recipe.cgroup.dirs, MemoryLimit(accel_, recipe.size.claim_bytes));
  if (!absl::IsNotFound(limited)) return limited;
  LogWarning("sandbox {}: {}: its claim is not enforced", recipe.state.sandbox_id, Message(limited));
  return absl::OkStatus();
}

absl::Status PodVm::MakeNetwork(Recipe& recipe) {
  if (recipe.spec.netns_path.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(recipe.network, SetUpNetwork(recipe.spec.netns_path));
  return absl::OkStatus();
}

absl::Status PodVm::ShareFiles(Recipe& recipe) {
  const std::string& dir = recipe.state.runtime_dir;
  vmm::VirtiofsdOptions options;
  options.program = config_.hypervisor.virtiofsd;
  options.shared_dir = dir + "/shared";
  options.socket = dir + "/virtiofsd.sock";
  options.log_path = dir + "/virtiofsd.log";
  options.cgroup_procs_files = recipe.cgroup.procs_files();
  options.oom_score_adj = recipe.spec.oom_score_adj;
  options.on_started = [&](pid_t pid, uint64_t start_time) {
    return book_.Change([&](SandboxState& state) {
      state.virtiofsd = {pid, start_time};
      state.mac = recipe.network.mac;
    });
  };
  ASSIGN_OR_RETURN(vmm::VirtiofsdProcess virtiofsd, doors_.hypervisor.StartVirtiofsd(options));
  virtiofsd_pidfd_ = std::move(virtiofsd.pidfd);
  recipe.vm.virtiofs_socket = virtiofsd.socket;
  return absl::OkStatus();
}

absl::Status PodVm::LaunchVm(Recipe& recipe) {
  vmm::VmSpec& vm = recipe.vm;
  vm.name = recipe.state.sandbox_id;
  vm.qemu = config_.hypervisor.qemu;
  vm.firmware = config_.hypervisor.firmware;
  vm.kernel = config_.kernel();
  vm.initramfs = config_.initramfs();
  vm.extra_kernel_args = config_.hypervisor.kernel_args;
  vm.vcpus = recipe.size.plan.vcpus;
  vm.memory_bytes = recipe.size.plan.memory_bytes();
  vm.max_vcpus = recipe.size.max_vcpus;
  vm.max_hot_memory_bytes = recipe.size.max_hot_memory_bytes;
  vm.numa_nodes.assign(recipe.size.numa_nodes.begin(), recipe.size.numa_nodes.end());
  vm.hotplug_bytes = config_.layers.arena_bytes * config_.layers.max_arenas_per_pod;
  vm.hotplug_ports = config_.hypervisor.hotplug_ports;
  vm.runtime_dir = recipe.state.runtime_dir;
  for (const laminad::v1::Arena& arena : recipe.claim.boot_arenas()) {
    if (vm.boot_arenas.size() < kMaxBootArenas)
      vm.boot_arenas.push_back({arena.id(), arena.path(), arena.bytes()});
  }
  vmm::StartOptions options;
  options.netns_path = recipe.spec.netns_path;
  options.cgroup_procs_files = recipe.cgroup.procs_files();
  options.oom_score_adj = recipe.spec.oom_score_adj;
  options.users = config_.hypervisor.users;
  options.users_lock = vmm::UsersLock(config_.paths.run_dir);
  if (recipe.network.present) {
    vm.tap_fd = vmm::kTapFd;
    vm.mac = recipe.network.mac;
    options.tap_fd = recipe.network.tap.get();
  }
  options.cancel_fd = abort_.get();
  options.on_started = [&](pid_t pid, uint64_t start_time) {
    return book_.Change([&](SandboxState& state) {
      state.vmm = {pid, start_time};
      for (const vmm::ArenaDevice& arena : vm.boot_arenas) state.arenas.push_back(arena.id);
    });
  };
  ASSIGN_OR_RETURN(vm_, doors_.hypervisor.Start(vm, options));
  ASSIGN_OR_RETURN(balloon_door_, vmm::BalloonDoor::Open(vm.runtime_dir, vm_->balloon()));
  laminad::v1::StartedRequest started;
  started.set_sandbox_id(recipe.state.sandbox_id);
  started.set_generation(recipe.claim.generation());
  started.set_vmm_pid(vm_->pid());
  started.set_vmm_start_time(vm_->start_time());
  return laminad_.Started(started);
}

absl::Status PodVm::GreetAgent(Recipe& recipe) {
  std::chrono::nanoseconds timeout = std::chrono::seconds(config_.hypervisor.boot_timeout_seconds);
  if (recipe.deadline) {
    timeout = std::clamp<std::chrono::nanoseconds>(*recipe.deadline - steady_clock::now(),
                                                   std::chrono::milliseconds(1), timeout);
  }
  const auto hello = Greet(recipe.state.runtime_dir, timeout);
  if (!hello.ok()) return Annotate(hello.status(), "boot the VM");
  recipe.ready.set_guest_mem_total_bytes(hello->mem_total_bytes());
  (*recipe.ready.mutable_phase_seconds())["kernel"] = hello->agent_started_boot_seconds();
  return absl::OkStatus();
}

absl::StatusOr<agent::v1::HelloResponse> PodVm::Greet(const std::string& runtime_dir,
                                                      std::chrono::nanoseconds timeout) {
  ASSIGN_OR_RETURN(UniqueFd stdio, doors_.dial_stdio(vmm::StdioSocket(runtime_dir)));
  mux_ = guest::StdioMux::Create(std::move(stdio));
  auto hello = link_.Open(timeout);
  if (hello.ok()) return hello;
  const absl::Status alive = vm_->Alive();
  return alive.ok() ? hello.status() : alive;
}

absl::Status PodVm::ConfigureGuest(Recipe& recipe) {
  agent::v1::ConfigureSandboxRequest configure = recipe.network.config;
  configure.set_sandbox_id(recipe.state.sandbox_id);
  configure.set_hostname(recipe.spec.hostname);
  for (const auto& [key, value] : recipe.spec.sysctls) (*configure.mutable_sysctls())[key] = value;
  configure.set_shared_tag(recipe.vm.virtiofs_tag);
  if (recipe.spec.files) {
    ASSIGN_OR_RETURN(const auto contents, PodFileContents(*recipe.spec.files));
    for (const auto& [name, content] : contents) {
      agent::v1::PodFile& file = *configure.add_files();
      file.set_name(name);
      file.set_content(content);
    }
  }
  RETURN_IF_ERROR(Annotate(ttrpc::Call(link_, guest::kConfigureSandbox, configure, kAgentTimeout).status(),
                           "configure the guest"));
  ASSIGN_OR_RETURN(clock_keeper_, guest::ClockKeeper::Start(link_, doors_.clock));
  return book_.Change([](SandboxState& state) { state.life_cycle = persist::LifeCycle::kReady; });
}

absl::Status PodVm::Restore(std::chrono::nanoseconds timeout) {
  const SandboxState state = book_.Get();
  rpc_socket_ = vmm::RpcSocket(state.runtime_dir);
  const auto restore = [&]() -> absl::Status {
    if (state.virtiofsd.pid != 0) {
      absl::StatusOr<UniqueFd> pidfd = OpenProcess(state.virtiofsd);
      if (absl::IsNotFound(pidfd.status()))
        return absl::UnavailableError("its virtiofsd has ended, and the volumes with it");
      ASSIGN_OR_RETURN(virtiofsd_pidfd_, std::move(pidfd));
    }
    ASSIGN_OR_RETURN(accel_, doors_.hypervisor.ChooseAccel(config_));
    ASSIGN_OR_RETURN(vm_, doors_.hypervisor.Adopt({state.vmm, state.runtime_dir, state.boot_memory_bytes}));
    ASSIGN_OR_RETURN(balloon_door_, vmm::BalloonDoor::Open(state.runtime_dir, vm_->balloon()));
    RETURN_IF_ERROR(Greet(state.runtime_dir, timeout).status());
    ASSIGN_OR_RETURN(clock_keeper_, guest::ClockKeeper::Start(link_, doors_.clock));
    return absl::OkStatus();
  };
  const absl::Status status = restore();
  if (!status.ok()) Drop();
  return Annotate(status, "go on with the VM of sandbox " + state.sandbox_id);
}

void PodVm::Drop() {
  clock_keeper_.reset();
  mux_.reset();
  balloon_door_.reset();
  vm_.reset();
  virtiofsd_pidfd_.reset();
}

absl::Status PodVm::Alive() const {
  if (vm_ == nullptr) return absl::FailedPreconditionError("the pod's VM does not run");
  const absl::Status alive = vm_->Alive();
  if (alive.ok()) return alive;
  const SandboxState state = book_.Get();
  if (OomKills(state.cgroup_dirs) == 0) return alive;
  return Annotate(alive,
                  fmt::format("the pod's processes used up the {} that its claim lets them have on the host",
                              FormatBytes(MemoryLimit(accel_, state.claim_bytes))));
}

absl::Status PodVm::Stop() {
  // A guest that still answers writes back what it holds; one that does not is not waited for.
  if (Alive().ok() && link_.connected())
    ttrpc::Call(link_, guest::kShutdown, agent::v1::Empty(), kFarewell).status().IgnoreError();
  return Kill();
}

absl::Status PodVm::Kill() {
  link_.Close();
  return vm_ == nullptr ? absl::OkStatus() : vm_->Kill(kKillTimeout);
}

void PodVm::WaitEnd() {
  if (vm_->WaitExit(virtiofsd_pidfd_ ? virtiofsd_pidfd_.get() : -1)) return;
  const std::string id = book_.Look([](const SandboxState& state) { return state.sandbox_id; });
  LogError("sandbox {}: its virtiofsd has ended, and the volumes with it: ending the VM", id);
  // One that does not die within the time of one try is killed all the same, and then seen.
  const absl::Status killed = Kill();
  if (!killed.ok()) LogError("sandbox {}: {}", id, Message(killed));
  vm_->WaitExit(-1);
}

}  // namespace lamina::cri
