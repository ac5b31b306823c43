#include "vmm/vm.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "base/file_system.h"
#include "base/status.h"
#include "base/subprocess.h"

namespace lamina::vmm {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kCommandTimeout{20};
constexpr uint32_t kControllers = 4, kLuns = 64;

std::string LogTail(const std::string& path) {
  const absl::StatusOr<std::string> log = FileSystem::Real().Read(path, 1 << 20);
  if (!log.ok() || log->empty()) return "it said nothing";
  std::string tail = log->size() > 600 ? log->substr(log->size() - 600) : *log;
  std::replace(tail.begin(), tail.end(), '\n', ' ');
  return "it said: " + tail;
}

// Ids of ours only: path characters never reach QEMU as an id.
std::string DiskId(uint32_t controller, uint32_t lun) { return fmt::format("disk-{}-{}", controller, lun); }

std::string JsonText(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    } else {
      out.push_back(c);
    }
  }
  return out + "\"";
}

}  // namespace

absl::StatusOr<std::unique_ptr<Vm>> Vm::Start(const VmSpec& spec, const StartOptions& options) {
  if (spec.hotplug_ports > 64) return InvalidArgument("{} hotplug ports: at most 64", spec.hotplug_ports);
  if (spec.boot_arenas.size() > 8)
    return InvalidArgument("{} boot arenas: at most 8", spec.boot_arenas.size());
  for (const std::string& file : {spec.kernel, spec.initramfs, spec.firmware}) {
    if (access(file.c_str(), R_OK) != 0) return ErrnoStatus(errno, "the VM needs " + file);
  }
  const QemuCommand command = BuildQemuCommand(spec);
  std::unique_ptr<Vm> vm(new Vm());
  vm->log_path_ = spec.runtime_dir + "/qemu.log";
  SpawnOptions spawn;
  spawn.argv = command.argv;
  spawn.netns_path = options.netns_path;
  spawn.log_path = vm->log_path_;
  spawn.cgroup_procs_files = options.cgroup_procs_files;
  if (options.tap_fd >= 0) spawn.fds = {{options.tap_fd, spec.tap_fd}};
  ASSIGN_OR_RETURN(vm->pid_, Spawn(spawn));
  vm->pidfd_ = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, vm->pid_, 0)));
  const absl::StatusOr<uint64_t> start_time = ProcessStartTime(vm->pid_);
  absl::Status status = start_time.ok() ? absl::OkStatus() : vm->Alive();
  if (status.ok()) {
    vm->start_time_ = start_time.value_or(0);
    auto qmp = QmpClient::Connect(QmpSocket(spec.runtime_dir), steady_clock::now() + options.timeout,
                                  [&] { return vm->Alive(); });
    status = qmp.status();
    if (qmp.ok()) vm->qmp_ = std::move(*qmp);
    // QEMU may have ended between its socket and its greeting.
    if (!status.ok() && !vm->Alive().ok()) status = vm->Alive();
  }
  if (!status.ok()) {
    vm->Kill(std::chrono::seconds(5)).IgnoreError();
    return Annotate(status, "start QEMU");
  }
  MutexLock lock(vm->mutex_);
  vm->ports_used_.assign(spec.hotplug_ports, false);
  for (size_t i = 0; i < spec.boot_arenas.size(); ++i)
    vm->arenas_[spec.boot_arenas[i].id] = command.arena_pci_paths[i];
  return vm;
}

Vm::~Vm() = default;

absl::Status Vm::Alive() const {
  pollfd poll_fd{pidfd_.get(), POLLIN, 0};
  if (poll(&poll_fd, 1, 0) == 0) return absl::OkStatus();
  return MakeStatus(absl::StatusCode::kUnavailable, "QEMU (pid {}) has ended; {}", pid_, LogTail(log_path_));
}

void Vm::WaitExit() {
  pollfd poll_fd{pidfd_.get(), POLLIN, 0};
  while (poll(&poll_fd, 1, -1) < 0 && errno == EINTR) {
  }
  waitpid(pid_, nullptr, WNOHANG);
}

absl::Status Vm::Kill(std::chrono::milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  if (pidfd_.get() < 0) return absl::OkStatus();
  syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - steady_clock::now()).count();
    pollfd poll_fd{pidfd_.get(), POLLIN, 0};
    const int ready = poll(&poll_fd, 1, static_cast<int>(std::max<int64_t>(left, 0)));
    if (ready > 0) break;
    if (left <= 0) return MakeStatus(absl::StatusCode::kDeadlineExceeded, "QEMU (pid {}) does not die", pid_);
  }
  waitpid(pid_, nullptr, WNOHANG);
  return absl::OkStatus();
}

size_t Vm::free_ports() const {
  MutexLock lock(mutex_);
  return static_cast<size_t>(std::count(ports_used_.begin(), ports_used_.end(), false));
}

std::vector<std::string> Vm::attached_arenas() const {
  MutexLock lock(mutex_);
  std::vector<std::string> ids;
  for (const auto& [id, path] : arenas_) ids.push_back(id);
  return ids;
}

absl::StatusOr<uint32_t> Vm::TakePortLocked() {
  const auto it = std::find(ports_used_.begin(), ports_used_.end(), false);
  if (it == ports_used_.end()) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "all {} hotplug ports of the VM are used",
                      ports_used_.size());
  }
  *it = true;
  return static_cast<uint32_t>(it - ports_used_.begin());
}

absl::StatusOr<std::string> Vm::AttachArena(const ArenaDevice& arena) {
  MutexLock lock(mutex_);
  if (const auto it = arenas_.find(arena.id); it != arenas_.end()) return it->second;
  ASSIGN_OR_RETURN(const uint32_t port, TakePortLocked());
  absl::StatusOr<std::string> done = qmp_->Execute(
      "object-add",
      fmt::format(
          R"({{"qom-type":"memory-backend-file","id":"mem-{}","mem-path":{},"size":{},"share":true,"readonly":true}})",
          arena.id, JsonText(arena.path), arena.bytes),
      kCommandTimeout);
  if (done.ok()) {
    done = qmp_->Execute(
        "device_add",
        fmt::format(R"({{"driver":"virtio-pmem-pci","id":"pmem-{0}","memdev":"mem-{0}","bus":"{1}"}})",
                    arena.id, HotplugPortId(port)),
        kCommandTimeout);
    if (!done.ok()) {
      qmp_->Execute("object-del", fmt::format(R"({{"id":"mem-{}"}})", arena.id), kCommandTimeout)
          .status()
          .IgnoreError();
    }
  }
  if (!done.ok()) {
    ports_used_[port] = false;
    return Annotate(done.status(), "attach arena " + arena.path);
  }
  return arenas_[arena.id] = HotplugPciPath(port);
}

absl::StatusOr<std::string> Vm::ControllerLocked(uint32_t index) {
  if (const auto it = controllers_.find(index); it != controllers_.end()) return it->second;
  ASSIGN_OR_RETURN(const uint32_t port, TakePortLocked());
  const absl::StatusOr<std::string> done = qmp_->Execute(
      "device_add",
      fmt::format(R"({{"driver":"virtio-scsi-pci","id":"scsi{}","bus":"{}"}})", index, HotplugPortId(port)),
      kCommandTimeout);
  if (!done.ok()) {
    ports_used_[port] = false;
    return done.status();
  }
  return controllers_[index] = HotplugPciPath(port);
}

absl::StatusOr<DiskPlace> Vm::AttachDisk(const std::string& image_path) {
  MutexLock lock(mutex_);
  if (const auto it = disks_.find(image_path); it != disks_.end() && it->second.attached) {
    ++it->second.users;
    return DiskPlace{controllers_.at(it->second.controller), 0, it->second.lun};
  }
  std::set<uint32_t> taken;
  for (const auto& [path, disk] : disks_) taken.insert(disk.controller * kLuns + disk.lun);
  uint32_t slot = 0;
  while (slot < kControllers * kLuns && taken.count(slot) != 0) ++slot;
  if (slot == kControllers * kLuns) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "attach {}: all {} SCSI places are taken",
                      image_path, slot);
  }
  const uint32_t controller = slot / kLuns, lun = slot % kLuns;
  ASSIGN_OR_RETURN(const std::string pci_path, ControllerLocked(controller));
  const std::string id = DiskId(controller, lun);
  absl::StatusOr<std::string> done = qmp_->Execute(
      "blockdev-add",
      fmt::format(
          R"({{"driver":"raw","node-name":"{}","read-only":true,"file":{{"driver":"file","filename":{},"read-only":true}}}})",
          id, JsonText(image_path)),
      kCommandTimeout);
  if (done.ok()) {
    done = qmp_->Execute(
        "device_add",
        fmt::format(
            R"({{"driver":"scsi-hd","id":"{0}","drive":"{0}","bus":"scsi{1}.0","scsi-id":0,"lun":{2}}})", id,
            controller, lun),
        kCommandTimeout);
    if (!done.ok()) {
      qmp_->Execute("blockdev-del", fmt::format(R"({{"node-name":"{}"}})", id), kCommandTimeout)
          .status()
          .IgnoreError();
    }
  }
  if (!done.ok()) return Annotate(done.status(), "attach disk " + image_path);
  disks_[image_path] = Disk{controller, lun, 1, true};
  return DiskPlace{pci_path, 0, lun};
}

absl::Status Vm::DetachDisk(const std::string& image_path) {
  MutexLock lock(mutex_);
  const auto it = disks_.find(image_path);
  if (it == disks_.end()) return absl::OkStatus();
  Disk& disk = it->second;
  if (disk.users > 1) {
    --disk.users;
    return absl::OkStatus();
  }
  const std::string id = DiskId(disk.controller, disk.lun);
  if (disk.attached) {
    const absl::StatusOr<std::string> asked =
        qmp_->Execute("device_del", fmt::format(R"({{"id":"{}"}})", id), kCommandTimeout);
    if (asked.ok()) {
      RETURN_IF_ERROR(Annotate(qmp_->WaitDeviceDeleted(id, kCommandTimeout), "detach disk " + image_path));
    } else if (asked.status().code() != absl::StatusCode::kNotFound) {
      return Annotate(asked.status(), "detach disk " + image_path);
    }
    disk.attached = false;
  }
  const absl::StatusOr<std::string> done =
      qmp_->Execute("blockdev-del", fmt::format(R"({{"node-name":"{}"}})", id), kCommandTimeout);
  RETURN_IF_ERROR(Annotate(done.status(), "detach disk " + image_path));
  disks_.erase(it);
  return absl::OkStatus();
}

}  // namespace lamina::vmm
