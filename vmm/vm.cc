#include "vmm/vm.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>

#include "base/file_system.h"
#include "base/process.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/units.h"
#include "vmm/balloon.h"
#include "vmm/resize.h"

namespace lamina::vmm {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kCommandTimeout{20};
constexpr int kEndingMillis = 2000;

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

// QEMU said no, so nothing has changed; any other error leaves open whether it has.
bool Refused(const absl::Status& status) {
  return status.code() != absl::StatusCode::kDeadlineExceeded &&
         status.code() != absl::StatusCode::kUnavailable;
}

absl::Status CheckSocketPath(const std::string& longest) {
  constexpr size_t kLimit = sizeof(sockaddr_un::sun_path) - 1;
  if (longest.size() <= kLimit) return absl::OkStatus();
  return InvalidArgument("socket path {} is {} bytes, Linux allows {}: choose a shorter run_dir", longest,
                         longest.size(), kLimit);
}

// QEMU would create a missing file instead of complaining.
absl::Status CheckArena(const ArenaDevice& arena) {
  const auto allowed = [](unsigned char c) { return isalnum(c) || c == '-' || c == '_' || c == '.'; };
  if (arena.id.empty() || arena.id.size() > 64 || !std::all_of(arena.id.begin(), arena.id.end(), allowed)) {
    return InvalidArgument("arena id \"{:.80}\": 1 to 64 of A-Z a-z 0-9 - _ . are allowed", arena.id);
  }
  struct stat info {};
  if (stat(arena.path.c_str(), &info) != 0) return ErrnoStatus(errno, "arena " + arena.path);
  if (!S_ISREG(info.st_mode) || arena.bytes == 0 || static_cast<uint64_t>(info.st_size) < arena.bytes) {
    return InvalidArgument("arena {} is not a file of {} bytes or more", arena.path, arena.bytes);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Vm>> Vm::Start(const VmSpec& spec, const StartOptions& options) {
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
  for (const ArenaDevice& arena : spec.boot_arenas) RETURN_IF_ERROR(CheckArena(arena));
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
  if (!vm->pidfd_) {
    const int error = errno;
    kill(vm->pid_, SIGKILL);  // still ours: nobody else reaps it
    waitpid(vm->pid_, nullptr, 0);
    return ErrnoStatus(error, "watch QEMU (pidfd_open)");
  }
  const absl::StatusOr<uint64_t> start_time = ProcessStartTime(vm->pid_);
  absl::Status status = start_time.ok() ? absl::OkStatus() : vm->Alive();
  if (status.ok()) {
    vm->start_time_ = start_time.value_or(0);
    auto qmp = QmpClient::Connect(QmpSocket(spec.runtime_dir), steady_clock::now() + options.timeout,
                                  [&] { return vm->Alive(); });
    status = qmp.status();
    if (qmp.ok()) vm->qmp_ = std::move(*qmp);
    if (status.code() == absl::StatusCode::kUnavailable) {
      // It closed its socket because it is ending: its own words say why.
      pollfd ended{vm->pidfd_.get(), POLLIN, 0};
      poll(&ended, 1, kEndingMillis);
      if (const absl::Status alive = vm->Alive(); !alive.ok()) status = alive;
    }
  }
  if (!status.ok()) {
    vm->Kill(std::chrono::seconds(5)).IgnoreError();
    return Annotate(status, "start QEMU");
  }
  MutexLock lock(vm->mutex_);
  vm->ports_used_.assign(spec.hotplug_ports, false);
  for (size_t i = 0; i < spec.boot_arenas.size(); ++i)
    vm->windows_.push_back({spec.boot_arenas[i], command.arena_pci_paths[i]});
  return vm;
}

absl::Status Vm::Alive() const {
  pollfd poll_fd{pidfd_.get(), POLLIN, 0};
  if (poll(&poll_fd, 1, 0) == 0) return absl::OkStatus();
  return MakeStatus(absl::StatusCode::kUnavailable, "QEMU (pid {}) has ended; {}", pid_, LogTail(log_path_));
}

bool Vm::WaitExit(int helper) {
  pollfd ends[] = {{pidfd_.get(), POLLIN, 0}, {helper, POLLIN, 0}};
  while (poll(ends, 2, -1) < 0 && errno == EINTR) {
  }
  if (ends[0].revents == 0) {
    int ready;
    while ((ready = poll(ends, 1, 1000)) < 0 && errno == EINTR) {
    }
    if (ready == 0) return false;
  }
  waitpid(pid_, nullptr, WNOHANG);
  return true;
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

std::vector<ArenaDevice> Vm::arenas() const {
  MutexLock lock(mutex_);
  std::vector<ArenaDevice> all;
  for (const Window& window : windows_) all.push_back(window.arena);
  return all;
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

absl::StatusOr<std::string> Vm::AttachArena(const ArenaDevice& arena, uint64_t end) {
  MutexLock lock(mutex_);
  size_t earlier = 0;
  for (const Window& window : windows_) {
    if (window.arena.id != arena.id) continue;
    if (window.arena.bytes >= end) return window.pci_path;
    ++earlier;
  }
  RETURN_IF_ERROR(CheckArena(arena));
  if (end > arena.bytes) {
    return InvalidArgument("arena {}: {} bytes of it do not show a region that ends at {}", arena.path,
                           arena.bytes, end);
  }
  ASSIGN_OR_RETURN(const uint32_t port, TakePortLocked());
  const std::string name = (earlier == 0 ? std::string() : std::to_string(earlier)) + "-" + arena.id;
  absl::StatusOr<std::string> done = qmp_->Execute(
      "object-add",
      fmt::format(
          R"({{"qom-type":"memory-backend-file","id":"mem{}","mem-path":{},"size":{},"share":true,"readonly":true}})",
          name, JsonText(arena.path), arena.bytes),
      kCommandTimeout);
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
    ports_used_[port] = false;
    return Annotate(done.status(), "attach arena " + arena.path);
  }
  windows_.push_back({arena, HotplugPciPath(port)});
  return windows_.back().pci_path;
}

// ScsiDisks' calls as QMP commands.
class Vm::QemuScsi : public ScsiHost {
 public:
  explicit QemuScsi(Vm& vm) : vm_(vm) {}

  absl::StatusOr<std::string> AddController(uint32_t index) override {
    uint32_t port = 0;
    {
      MutexLock lock(vm_.mutex_);
      const auto known = vm_.controller_ports_.find(index);  // an earlier call had no answer
      if (known != vm_.controller_ports_.end()) {
        port = known->second;
      } else {
        ASSIGN_OR_RETURN(port, vm_.TakePortLocked());
        vm_.controller_ports_[index] = port;
      }
    }
    const absl::Status done =
        vm_.qmp_
            ->Execute("device_add",
                      fmt::format(R"({{"driver":"virtio-scsi-pci","id":"scsi{}","bus":"{}"}})", index,
                                  HotplugPortId(port)),
                      kCommandTimeout)
            .status();
    if (done.ok() || done.message().find("Duplicate device ID") != absl::string_view::npos)
      return HotplugPciPath(port);
    if (Refused(done)) {
      MutexLock lock(vm_.mutex_);
      vm_.controller_ports_.erase(index);
      vm_.ports_used_[port] = false;
    }
    return Annotate(done, fmt::format("add SCSI controller {}", index));
  }

  absl::Status AddDisk(uint32_t controller, uint32_t lun, const std::string& image) override {
    const std::string id = DiskId(controller, lun);
    RETURN_IF_ERROR(
        vm_.qmp_
            ->Execute(
                "blockdev-add",
                fmt::format(
                    R"({{"driver":"raw","node-name":"{}","read-only":true,"file":{{"driver":"file","filename":{},"read-only":true}}}})",
                    id, JsonText(image)),
                kCommandTimeout)
            .status());
    return vm_.qmp_
        ->Execute(
            "device_add",
            fmt::format(
                R"({{"driver":"scsi-hd","id":"{0}","drive":"{0}","bus":"scsi{1}.0","scsi-id":0,"lun":{2}}})",
                id, controller, lun),
            kCommandTimeout)
        .status();
  }

  absl::Status RemoveDisk(uint32_t controller, uint32_t lun) override {
    const std::string id = DiskId(controller, lun);
    vm_.qmp_->ForgetDeleted(id);
    const absl::Status asked =
        vm_.qmp_->Execute("device_del", fmt::format(R"({{"id":"{}"}})", id), kCommandTimeout).status();
    // An earlier call that was not waited for to its end goes on.
    const bool going = asked.ok() || asked.message().find("process of unplug") != absl::string_view::npos;
    if (going) {
      RETURN_IF_ERROR(vm_.qmp_->WaitDeviceDeleted(id, kCommandTimeout));
    } else if (!absl::IsNotFound(asked)) {
      return asked;
    }
    const absl::Status done =
        vm_.qmp_->Execute("blockdev-del", fmt::format(R"({{"node-name":"{}"}})", id), kCommandTimeout)
            .status();
    // It is not there: AddDisk got no further, or an earlier call whose answer was lost has done it.
    if (done.message().find("Failed to find node") != absl::string_view::npos) return absl::OkStatus();
    return done;
  }

 private:
  Vm& vm_;
};

Vm::Vm() : scsi_host_(std::make_unique<QemuScsi>(*this)), scsi_(std::make_unique<ScsiDisks>(*scsi_host_)) {}

Vm::~Vm() = default;

}  // namespace lamina::vmm
