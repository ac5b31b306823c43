#include "vmm/qemu_vm.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "base/process.h"
#include "base/status.h"
#include "base/units.h"
#include "vmm/balloon_door.h"
#include "vmm/process_log.h"
#include "vmm/qemu_command.h"
#include "vmm/qemu_files.h"
#include "vmm/qemu_launch.h"
#include "vmm/resize.h"

namespace lamina::vmm {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kCommandTimeout{20};
constexpr std::chrono::seconds kEnding{2};
constexpr size_t kTailBytes = 600;

constexpr std::chrono::seconds kFollowHelper{1};

absl::Status CheckSocketPath(const std::string& longest) {
  constexpr size_t kLimit = sizeof(sockaddr_un::sun_path) - 1;
  if (longest.size() <= kLimit) return absl::OkStatus();
  return InvalidArgument("socket path {} is {} bytes, Linux allows {}: choose a shorter run_dir", longest,
                         longest.size(), kLimit);
}

// A VM without its virtiofsd does not start, and cannot say why that has ended.
absl::Status WithVirtiofsdsWords(const absl::Status& status, const VmSpec& spec) {
  if (spec.virtiofs_socket.empty() || absl::IsCancelled(status)) return status;
  const std::string said = LogTail(VirtiofsdLog(spec.runtime_dir), kTailBytes);
  if (said.empty()) return status;
  return {status.code(), fmt::format("{}; virtiofsd said: {}", Message(status), said)};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Vm>> QemuVm::Start(const VmSpec& spec, const StartOptions& options) {
  RETURN_IF_ERROR(CheckSocketPath(BalloonSocket(spec.runtime_dir)));
  if (spec.memory_bytes == 0 || spec.memory_bytes % kMiB != 0 || spec.vcpus == 0) {
    return InvalidArgument("a VM of {} bytes and {} vCPUs: whole MiB and at least 1 vCPU are needed",
                           spec.memory_bytes, spec.vcpus);
  }
  if (spec.max_hot_memory_bytes % kHotplugBlock != 0) {
    return InvalidArgument("{} bytes of hot memory: whole blocks of {} are needed", spec.max_hot_memory_bytes,
                           FormatBytes(kHotplugBlock));
  }
  if (spec.hotplug_ports > 64) return InvalidArgument("{} hotplug ports: at most 64", spec.hotplug_ports);
  if (spec.boot_arenas.size() > 8)
    return InvalidArgument("{} boot arenas: at most 8", spec.boot_arenas.size());
  for (const std::string& file : {spec.kernel, spec.initramfs, spec.firmware}) {
    if (access(file.c_str(), R_OK) != 0) return ErrnoStatus(errno, "the VM needs " + file);
  }
  const QemuCommand command = BuildQemuCommand(spec);
  std::unique_ptr<QemuVm> vm(new QemuVm(spec.runtime_dir));
  const absl::StatusOr<pid_t> pid = LaunchQemu(spec, command, options);
  if (!pid.ok()) return WithVirtiofsdsWords(pid.status(), spec);
  vm->pid_ = *pid;
  vm->pidfd_ = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, vm->pid_, 0)));
  if (!vm->pidfd_) {
    const int error = errno;
    kill(vm->pid_, SIGKILL);  // still ours: nobody else reaps it
    KillProcess(vm->pid_, ProcessStartTime(vm->pid_).value_or(0), std::chrono::seconds(5)).IgnoreError();
    return ErrnoStatus(error, "watch QEMU (pidfd_open)");
  }
  const absl::StatusOr<uint64_t> start_time = ProcessStartTime(vm->pid_);
  absl::Status status = start_time.ok() ? absl::OkStatus() : vm->Alive();
  if (status.ok()) status = vm->KeepLogs();
  if (status.ok()) {
    vm->start_time_ = start_time.value_or(0);
    if (options.on_started) status = options.on_started(vm->pid_, vm->start_time_);
  }
  if (status.ok()) {
    auto qmp = QmpClient::Connect(
        QmpSocket(spec.runtime_dir), steady_clock::now() + options.timeout, [&] { return vm->Alive(); },
        options.cancel_fd);
    status = qmp.status();
    if (qmp.ok()) vm->qmp_ = std::move(*qmp);
    if (status.code() == absl::StatusCode::kUnavailable) {
      // It closed its socket because it is ending: its own words say why.
      AwaitProcessEnd(vm->pidfd_.get(), kEnding);
      if (const absl::Status alive = vm->Alive(); !alive.ok()) status = alive;
    }
  }
  if (!status.ok()) {
    vm->Kill(std::chrono::seconds(5)).IgnoreError();
    return WithVirtiofsdsWords(Annotate(status, "start QEMU"), spec);
  }
  QemuDevices devices;
  devices.ports = spec.hotplug_ports;
  for (size_t i = 0; i < spec.boot_arenas.size(); ++i)
    devices.windows.push_back({spec.boot_arenas[i], command.arena_pci_paths[i]});
  vm->SetUp(spec.memory_bytes, std::move(devices));
  return vm;
}

absl::StatusOr<std::unique_ptr<Vm>> QemuVm::Adopt(const Adoption& adoption) {
  const std::string what = fmt::format("go on with QEMU (pid {})", adoption.process.pid);
  std::unique_ptr<QemuVm> vm(new QemuVm(adoption.runtime_dir));
  vm->pid_ = static_cast<pid_t>(adoption.process.pid);
  vm->start_time_ = adoption.process.start_time;
  absl::StatusOr<UniqueFd> pidfd = OpenProcess(adoption.process);
  if (!pidfd.ok()) {
    if (!absl::IsNotFound(pidfd.status())) return Annotate(pidfd.status(), what);
    return Annotate(absl::UnavailableError("it has ended"), what);
  }
  vm->pidfd_ = std::move(*pidfd);
  if (const absl::Status kept = vm->KeepLogs(); !kept.ok()) return Annotate(kept, what);
  auto qmp = QmpClient::Connect(QmpSocket(adoption.runtime_dir), steady_clock::now() + adoption.timeout,
                                [&] { return vm->Alive(); });
  if (!qmp.ok()) return Annotate(qmp.status(), what);
  vm->qmp_ = std::move(*qmp);
  absl::StatusOr<QemuDevices> devices = ReadDevices(*vm->qmp_);
  if (!devices.ok()) return Annotate(devices.status(), what);
  vm->SetUp(adoption.boot_memory_bytes, std::move(*devices));
  return vm;
}

void QemuVm::SetUp(uint64_t boot_memory_bytes, QemuDevices devices) {
  ports_ = std::make_unique<HotplugPorts>(devices.ports, devices.used_ports);
  resizer_ = std::make_unique<QmpResizer>(*qmp_, boot_memory_bytes);
  balloon_ = std::make_unique<QmpBalloon>(*qmp_, boot_memory_bytes);
  scsi_host_ = std::make_unique<QemuScsi>(*qmp_, *ports_, std::move(devices.controllers));
  scsi_ = std::make_unique<ScsiDisks>(*scsi_host_, std::move(devices.places));
  MutexLock lock(mutex_);
  windows_ = std::move(devices.windows);
}

absl::Status QemuVm::Alive() const {
  pollfd poll_fd{pidfd_.get(), POLLIN, 0};
  if (poll(&poll_fd, 1, 0) == 0) return absl::OkStatus();
  const std::string said = LogTail(QemuLog(runtime_dir_), kTailBytes);
  return MakeStatus(absl::StatusCode::kUnavailable, "QEMU (pid {}) has ended; it said{} {}", pid_,
                    said.empty() ? "" : ":", said.empty() ? "nothing" : said);
}

std::vector<std::string> QemuVm::Logs() const { return {QemuLog(runtime_dir_), VirtiofsdLog(runtime_dir_)}; }

absl::Status QemuVm::KeepLogs() {
  ASSIGN_OR_RETURN(log_keeper_, LogKeeper::Start(Logs()));
  return absl::OkStatus();
}

bool QemuVm::WaitExit(int helper) {
  log_keeper_.reset();
  pollfd ends[] = {{pidfd_.get(), POLLIN, 0}, {helper, POLLIN, 0}};
  TrimLogsUntil(Logs(), ends, 2);
  if (ends[0].revents == 0 && !AwaitProcessEnd(pidfd_.get(), kFollowHelper)) return false;
  for (const std::string& log : Logs()) TrimLog(log).status().IgnoreError();  // its last words may be many
  waitpid(pid_, nullptr, WNOHANG);
  return true;
}

absl::Status QemuVm::Kill(std::chrono::milliseconds timeout) {
  syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
  if (!AwaitProcessEnd(pidfd_.get(), timeout))
    return MakeStatus(absl::StatusCode::kDeadlineExceeded, "QEMU (pid {}) does not die", pid_);
  waitpid(pid_, nullptr, WNOHANG);
  return absl::OkStatus();
}

std::vector<ArenaDevice> QemuVm::arenas() const {
  MutexLock lock(mutex_);
  std::vector<ArenaDevice> all;
  for (const ArenaWindow& window : windows_) all.push_back(window.arena);
  return all;
}

absl::StatusOr<std::string> QemuVm::AttachArena(const ArenaDevice& arena, uint64_t end) {
  MutexLock lock(mutex_);
  size_t earlier = 0;
  for (const ArenaWindow& window : windows_) {
    if (window.arena.id != arena.id) continue;
    if (window.arena.bytes >= end) return window.pci_path;
    ++earlier;
  }
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenArena(arena));
  if (end > arena.bytes) {
    return InvalidArgument("arena {}: {} bytes of it do not show a region that ends at {}", arena.path,
                           arena.bytes, end);
  }
  ASSIGN_OR_RETURN(const uint32_t port, ports_->Take());
  const absl::StatusOr<HandedFile> file = HandFile(*qmp_, fd.get());
  if (!file.ok()) {
    ports_->GiveBack(port);
    return Annotate(file.status(), "attach arena " + arena.path);
  }
  const std::string name = (earlier == 0 ? std::string() : std::to_string(earlier)) + "-" + arena.id;
  absl::StatusOr<std::string> done = qmp_->Execute(
      "object-add",
      fmt::format(
          R"({{"qom-type":"memory-backend-file","id":"mem{}","mem-path":"{}","size":{},"share":true,"readonly":true}})",
          name, file->open_path(), arena.bytes),
      kCommandTimeout);
  const absl::Status taken_back = TakeFileBack(*qmp_, *file);
  if (done.ok()) {
    done = qmp_->Execute(
        "device_add",
        fmt::format(R"({{"driver":"virtio-pmem-pci","id":"pmem{0}","memdev":"mem{0}","bus":"{1}"}})", name,
                    HotplugPortId(port)),
        kCommandTimeout);
    // A device that came after all keeps its memory, and then the port is not free.
    const bool undone =
        done.ok() ||
        qmp_->Execute("object-del", fmt::format(R"({{"id":"mem{}"}})", name), kCommandTimeout).ok();
    if (!undone) return Annotate(done.status(), "attach arena " + arena.path + " (its port is lost)");
  }
  if (!done.ok()) {
    ports_->GiveBack(port);
    return Annotate(done.status(), "attach arena " + arena.path);
  }
  // The device is there all the same.
  if (!taken_back.ok())
    LogWarning("arena {}: QEMU keeps a descriptor too many: {}", arena.path, Message(taken_back));
  windows_.push_back({arena, HotplugPciPath(port)});
  return windows_.back().pci_path;
}

}  // namespace lamina::vmm
