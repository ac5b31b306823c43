#include "vmm/fake_hypervisor.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <map>
#include <set>
#include <utility>

#include "base/mutex.h"
#include "base/process.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "vmm/fake_balloon.h"
#include "vmm/hotplug_ports.h"
#include "vmm/qemu_command.h"
#include "vmm/qemu_devices.h"

namespace lamina::vmm {
namespace {

using std::chrono::milliseconds;

// A process that only sleeps, by its own pidfd: its pid may be another's once somebody has reaped it.
struct Sleeper {
  pid_t pid = 0;
  uint64_t start_time = 0;
  UniqueFd pidfd;

  bool Ended(int timeout_millis) const {
    pollfd entry{pidfd.get(), POLLIN, 0};
    return poll(&entry, 1, timeout_millis) > 0;
  }
  void End() const {
    syscall(SYS_pidfd_send_signal, pidfd.get(), SIGKILL, nullptr, 0);
    siginfo_t info{};
    while (waitid(P_PIDFD, static_cast<id_t>(pidfd.get()), &info, WEXITED) != 0 && errno == EINTR) {
    }
  }
};

absl::StatusOr<Sleeper> StartSleeper() {
  SpawnOptions options;
  options.argv = {"sleep", "1000"};
  Sleeper sleeper;
  ASSIGN_OR_RETURN(sleeper.pid, Spawn(options));
  sleeper.pidfd = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, sleeper.pid, 0)));
  if (!sleeper.pidfd) return ErrnoStatus(errno, "pidfd_open");
  ASSIGN_OR_RETURN(sleeper.start_time, ProcessStartTime(sleeper.pid));
  return sleeper;
}

}  // namespace

struct FakeMachine;

struct FakeWorld {
  // Writes a call down. Its error, if it is to have one.
  absl::Status Call(const std::string& what) EXCLUDES(mutex) {
    std::function<absl::Status(const std::string&)> hook;
    {
      MutexLock lock(mutex);
      calls.push_back(what);
      if (fail_at >= 0 && calls.size() == static_cast<size_t>(fail_at) + 1) return error;
      hook = before_each;
    }
    return hook ? hook(what) : absl::OkStatus();
  }
  // A process, which `told` hears of; it ends when that fails.
  absl::StatusOr<std::shared_ptr<const Sleeper>> Begin(const OnStarted& told) EXCLUDES(mutex) {
    ASSIGN_OR_RETURN(Sleeper begun, StartSleeper());
    const auto sleeper = std::make_shared<const Sleeper>(std::move(begun));
    {
      MutexLock lock(mutex);
      sleepers.push_back(sleeper);
    }
    const absl::Status status = told ? told(sleeper->pid, sleeper->start_time) : absl::OkStatus();
    if (status.ok()) return sleeper;
    sleeper->End();
    return status;
  }

  mutable Mutex mutex;
  std::vector<std::string> calls GUARDED_BY(mutex);
  int fail_at GUARDED_BY(mutex) = -1;
  absl::Status error GUARDED_BY(mutex);
  std::function<absl::Status(const std::string&)> before_each GUARDED_BY(mutex);
  int kill_timeouts GUARDED_BY(mutex) = 0;
  bool start_hangs GUARDED_BY(mutex) = false;
  uint64_t guest_holds GUARDED_BY(mutex) = UINT64_MAX;
  std::vector<std::shared_ptr<const Sleeper>> sleepers GUARDED_BY(mutex);
  std::shared_ptr<const Sleeper> vm GUARDED_BY(mutex), virtiofsd GUARDED_BY(mutex);
  std::shared_ptr<FakeMachine> machine GUARDED_BY(mutex);  // of `vm`
  VmSpec spec GUARDED_BY(mutex);
};

// What a VM has been given, whoever goes on with it.
struct FakeMachine {
  explicit FakeMachine(const VmSpec& of) : spec(of), ports(of.hotplug_ports) {
    const std::vector<std::string> paths = BuildQemuCommand(spec).arena_pci_paths;
    for (size_t i = 0; i < paths.size(); ++i) windows.push_back({spec.boot_arenas[i], paths[i]});
  }

  const VmSpec spec;
  HotplugPorts ports;
  FakeGuest guest{spec.memory_bytes};
  Mutex mutex;
  std::vector<ArenaWindow> windows GUARDED_BY(mutex);
  std::map<uint32_t, uint32_t> controllers GUARDED_BY(mutex);
  std::set<std::pair<uint32_t, uint32_t>> places GUARDED_BY(mutex);
};

namespace {

class FakeScsiHost : public ScsiHost {
 public:
  FakeScsiHost(FakeWorld& world, FakeMachine& machine) : world_(world), machine_(machine) {}
  absl::StatusOr<std::string> AddController(uint32_t index) override {
    RETURN_IF_ERROR(world_.Call(fmt::format("AddController {}", index)));
    MutexLock lock(machine_.mutex);
    const auto known = machine_.controllers.find(index);
    if (known != machine_.controllers.end()) return HotplugPciPath(known->second);
    ASSIGN_OR_RETURN(const uint32_t port, machine_.ports.Take());
    machine_.controllers[index] = port;
    return HotplugPciPath(port);
  }
  absl::Status AddDisk(uint32_t controller, uint32_t lun, const DiskFile& file) override {
    RETURN_IF_ERROR(world_.Call(
        fmt::format("AddDisk {}.{} {}{}", controller, lun, file.path, file.writable ? " writable" : "")));
    if (file.open) RETURN_IF_ERROR(file.open().status());
    MutexLock lock(machine_.mutex);
    if (machine_.places.insert({controller, lun}).second) return absl::OkStatus();
    return MakeStatus(absl::StatusCode::kInternal, "Duplicate device ID 'disk-{}-{}'", controller, lun);
  }
  absl::Status RemoveDisk(uint32_t controller, uint32_t lun) override {
    RETURN_IF_ERROR(world_.Call(fmt::format("RemoveDisk {}.{}", controller, lun)));
    MutexLock lock(machine_.mutex);
    machine_.places.erase({controller, lun});
    return absl::OkStatus();
  }
  absl::Status GrowDisk(uint32_t controller, uint32_t lun, uint64_t bytes) override {
    return world_.Call(fmt::format("GrowDisk {}.{} {}", controller, lun, bytes));
  }

 private:
  FakeWorld& world_;
  FakeMachine& machine_;
};

class FakeResizer : public Resizer {
 public:
  FakeResizer(FakeWorld& world, const VmSpec& spec)
      : world_(world), max_vcpus_(std::max(spec.vcpus, spec.max_vcpus)), vcpus_(spec.vcpus) {}
  absl::StatusOr<uint32_t> PlugVcpus(uint32_t vcpus) override {
    RETURN_IF_ERROR(world_.Call(fmt::format("PlugVcpus {}", vcpus)));
    MutexLock lock(mutex_);
    if (vcpus > max_vcpus_) {
      return MakeStatus(absl::StatusCode::kOutOfRange, "{} vCPUs do not fit a VM that has places for {}",
                        vcpus, max_vcpus_);
    }
    return vcpus_ = std::max(vcpus_, vcpus);
  }
  absl::StatusOr<HotMemory> Memory() override {
    RETURN_IF_ERROR(world_.Call("Memory"));
    return Look();
  }
  absl::Status RequestMemory(uint64_t bytes) override {
    RETURN_IF_ERROR(world_.Call(fmt::format("RequestMemory {}", bytes)));
    Request(bytes);
    return absl::OkStatus();
  }
  absl::Status GrowMemory(uint64_t bytes, milliseconds timeout) override {
    RETURN_IF_ERROR(world_.Call(fmt::format("GrowMemory {}", bytes)));
    Request(bytes);
    const uint64_t plugged = Look().plugged;
    if (plugged >= bytes) return absl::OkStatus();
    return MakeStatus(absl::StatusCode::kDeadlineExceeded,
                      "the guest was asked to hold {} bytes of virtio-mem and has taken {} after {} ms",
                      bytes, plugged, timeout.count());
  }

 private:
  void Request(uint64_t bytes) {
    MutexLock lock(mutex_);
    requested_ = bytes;
  }
  HotMemory Look() {
    uint64_t most;
    {
      MutexLock lock(world_.mutex);
      most = world_.guest_holds;
    }
    MutexLock lock(mutex_);
    return {requested_, std::min(requested_, most)};
  }

  FakeWorld& world_;
  const uint32_t max_vcpus_;
  Mutex mutex_;
  uint32_t vcpus_ GUARDED_BY(mutex_);
  uint64_t requested_ GUARDED_BY(mutex_) = 0;
};

class FakeVm : public Vm {
 public:
  FakeVm(std::shared_ptr<FakeWorld> world, std::shared_ptr<const Sleeper> process,
         std::shared_ptr<FakeMachine> machine)
      : world_(std::move(world)),
        process_(std::move(process)),
        machine_(std::move(machine)),
        scsi_host_(*world_, *machine_),
        scsi_(scsi_host_, Places(*machine_)),
        resizer_(*world_, machine_->spec),
        balloon_(machine_->guest) {}

  pid_t pid() const override { return process_->pid; }
  uint64_t start_time() const override { return process_->start_time; }

  absl::StatusOr<std::string> AttachArena(const ArenaDevice& arena, uint64_t end) override {
    {
      MutexLock lock(machine_->mutex);
      for (const ArenaWindow& window : machine_->windows)
        if (window.arena.id == arena.id && window.arena.bytes >= end) return window.pci_path;
    }
    RETURN_IF_ERROR(world_->Call("AttachArena " + arena.id));
    if (end > arena.bytes) {
      return InvalidArgument("arena {}: {} bytes of it do not show a region that ends at {}", arena.path,
                             arena.bytes, end);
    }
    ASSIGN_OR_RETURN(const uint32_t port, machine_->ports.Take());
    MutexLock lock(machine_->mutex);
    machine_->windows.push_back({arena, HotplugPciPath(port)});
    return machine_->windows.back().pci_path;
  }
  size_t free_ports() const override { return machine_->ports.free(); }
  std::vector<ArenaDevice> arenas() const override {
    MutexLock lock(machine_->mutex);
    std::vector<ArenaDevice> all;
    for (const ArenaWindow& window : machine_->windows) all.push_back(window.arena);
    return all;
  }
  ScsiDisks& scsi() override { return scsi_; }
  Resizer& resizer() override { return resizer_; }
  Balloon& balloon() override { return balloon_; }

  absl::Status Alive() const override {
    if (!process_->Ended(0)) return absl::OkStatus();
    return MakeStatus(absl::StatusCode::kUnavailable, "the VM (pid {}) has ended; it said nothing", pid());
  }
  bool WaitExit(int helper) override {
    pollfd ends[] = {{process_->pidfd.get(), POLLIN, 0}, {helper, POLLIN, 0}};
    while (poll(ends, 2, -1) < 0 && errno == EINTR) {
    }
    // The real one gives QEMU a second to follow; here a test says who has ended.
    return ends[0].revents != 0;
  }
  absl::Status Kill(milliseconds /*timeout*/) override {
    RETURN_IF_ERROR(world_->Call("Kill"));
    {
      MutexLock lock(world_->mutex);
      if (world_->kill_timeouts > 0) {
        --world_->kill_timeouts;
        return MakeStatus(absl::StatusCode::kDeadlineExceeded, "the VM (pid {}) does not die", pid());
      }
    }
    process_->End();
    return absl::OkStatus();
  }

 private:
  static std::set<std::pair<uint32_t, uint32_t>> Places(FakeMachine& machine) {
    MutexLock lock(machine.mutex);
    return machine.places;
  }

  const std::shared_ptr<FakeWorld> world_;
  const std::shared_ptr<const Sleeper> process_;
  const std::shared_ptr<FakeMachine> machine_;
  FakeScsiHost scsi_host_;
  ScsiDisks scsi_;
  FakeResizer resizer_;
  FakeBalloon balloon_;
};

}  // namespace

FakeHypervisor::FakeHypervisor() : world_(std::make_shared<FakeWorld>()) {}

FakeHypervisor::~FakeHypervisor() {
  MutexLock lock(world_->mutex);
  for (const auto& sleeper : world_->sleepers) sleeper->End();
}

absl::StatusOr<Accel> FakeHypervisor::ChooseAccel(const Config& config) {
  RETURN_IF_ERROR(world_->Call("ChooseAccel"));
  return config.hypervisor.accel == AccelName(Accel::kKvm) ? Accel::kKvm : Accel::kTcg;
}

absl::StatusOr<VirtiofsdProcess> FakeHypervisor::StartVirtiofsd(const VirtiofsdOptions& options) {
  RETURN_IF_ERROR(world_->Call("StartVirtiofsd " + options.shared_dir));
  ASSIGN_OR_RETURN(const auto sleeper, world_->Begin(options.on_started));
  UniqueFd pidfd(fcntl(sleeper->pidfd.get(), F_DUPFD_CLOEXEC, 0));
  if (!pidfd) return ErrnoStatus(errno, "dup");
  MutexLock lock(world_->mutex);
  world_->virtiofsd = sleeper;
  return VirtiofsdProcess{sleeper->pid, sleeper->start_time, std::move(pidfd), options.socket};
}

absl::StatusOr<std::unique_ptr<Vm>> FakeHypervisor::Start(const VmSpec& spec, const StartOptions& options) {
  RETURN_IF_ERROR(world_->Call("Start " + spec.name));
  ASSIGN_OR_RETURN(const auto sleeper, world_->Begin(options.on_started));
  bool hangs;
  {
    MutexLock lock(world_->mutex);
    hangs = std::exchange(world_->start_hangs, false);
  }
  if (hangs) {
    pollfd cancel{options.cancel_fd, POLLIN, 0};
    const int ready = poll(&cancel, 1, static_cast<int>(options.timeout.count()));
    sleeper->End();
    if (ready > 0) return absl::CancelledError("start QEMU: given up");
    return absl::DeadlineExceededError("start QEMU: it did not open its socket in time");
  }
  MutexLock lock(world_->mutex);
  world_->spec = spec;
  world_->vm = sleeper;
  world_->machine = std::make_shared<FakeMachine>(spec);
  return std::make_unique<FakeVm>(world_, sleeper, world_->machine);
}

absl::StatusOr<std::unique_ptr<Vm>> FakeHypervisor::Adopt(const Adoption& adoption) {
  RETURN_IF_ERROR(world_->Call(fmt::format("Adopt {}", adoption.runtime_dir)));
  MutexLock lock(world_->mutex);
  const ProcessId& wanted = adoption.process;
  if (world_->vm == nullptr || world_->vm->Ended(0) ||
      wanted != ProcessId{world_->vm->pid, world_->vm->start_time}) {
    return MakeStatus(absl::StatusCode::kUnavailable, "go on with the VM (pid {}): it has ended", wanted.pid);
  }
  return std::make_unique<FakeVm>(world_, world_->vm, world_->machine);
}

std::vector<std::string> FakeHypervisor::calls() const {
  MutexLock lock(world_->mutex);
  return world_->calls;
}

int FakeHypervisor::Count(std::string_view what) const {
  MutexLock lock(world_->mutex);
  return static_cast<int>(std::count_if(world_->calls.begin(), world_->calls.end(),
                                        [&](const std::string& call) { return call.rfind(what, 0) == 0; }));
}

void FakeHypervisor::FailAt(int number, absl::Status error) {
  MutexLock lock(world_->mutex);
  world_->fail_at = number;
  world_->error = std::move(error);
}

void FakeHypervisor::BeforeEach(std::function<absl::Status(const std::string& call)> hook) {
  MutexLock lock(world_->mutex);
  world_->before_each = std::move(hook);
}

void FakeHypervisor::EndVm() {
  MutexLock lock(world_->mutex);
  if (world_->vm != nullptr) world_->vm->End();
}

void FakeHypervisor::EndVirtiofsd() {
  MutexLock lock(world_->mutex);
  if (world_->virtiofsd != nullptr) world_->virtiofsd->End();
}

void FakeHypervisor::KillTimesOut(int times) {
  MutexLock lock(world_->mutex);
  world_->kill_timeouts = times;
}

void FakeHypervisor::StartHangs() {
  MutexLock lock(world_->mutex);
  world_->start_hangs = true;
}

void FakeHypervisor::GuestHoldsAtMost(uint64_t hot_memory_bytes) {
  MutexLock lock(world_->mutex);
  world_->guest_holds = hot_memory_bytes;
}

size_t FakeHypervisor::processes() const {
  MutexLock lock(world_->mutex);
  return static_cast<size_t>(std::count_if(world_->sleepers.begin(), world_->sleepers.end(),
                                           [](const auto& sleeper) { return !sleeper->Ended(0); }));
}

VmSpec FakeHypervisor::spec() const {
  MutexLock lock(world_->mutex);
  return world_->spec;
}

}  // namespace lamina::vmm
