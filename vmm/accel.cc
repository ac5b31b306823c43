#include "vmm/accel.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <string_view>

#include "base/clock.h"
#include "base/file_system.h"
#include "base/log.h"
#include "base/status.h"
#include "base/ttrpc/client.h"
#include "base/unique_fd.h"
#include "guest/protocol/greeting.h"
#include "vmm/qemu_vm.h"

namespace lamina::vmm {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kBootLimit{8};
constexpr std::chrono::seconds kLockLimit{30};  // a trial and its ending take half of it

// As exec finds it.
std::string ProgramPath(const std::string& program) {
  if (program.find('/') != std::string::npos) return program;
  const char* path = getenv("PATH");
  std::string_view rest = path != nullptr ? path : "/usr/sbin:/usr/bin:/sbin:/bin";
  while (!rest.empty()) {
    const size_t colon = std::min(rest.find(':'), rest.size());
    const std::string candidate = std::string(rest.substr(0, colon)) + "/" + program;
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
    rest.remove_prefix(std::min(colon + 1, rest.size()));
  }
  return program;
}

// Ends the VM of a probe whose caller was killed.
void EndLeftProbe(const std::string& dir) {
  if (access(QmpSocket(dir).c_str(), F_OK) != 0) return;
  const auto qmp = QmpClient::Connect(QmpSocket(dir), steady_clock::now() + std::chrono::seconds(2),
                                      [] { return absl::UnavailableError("nobody listens"); });
  if (qmp.ok()) (*qmp)->Execute("quit", "", std::chrono::seconds(2)).status().IgnoreError();
}

absl::StatusOr<std::string> FileKey(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, path);
  return fmt::format("{}-{}-{}", info.st_ino, info.st_size, info.st_mtim.tv_sec);
}

// OK when the guest's agent answered under KVM in time.
absl::Status TryKvm(const Config& config, const std::string& dir) {
  VmSpec spec;
  spec.name = "lamina-kvm-probe";
  spec.qemu = config.hypervisor.qemu;
  spec.accel = Accel::kKvm;
  spec.firmware = config.hypervisor.firmware;
  spec.kernel = config.kernel();
  spec.initramfs = config.initramfs();
  spec.memory_bytes = 256 * kMiB;
  spec.hotplug_ports = 1;
  spec.runtime_dir = dir;
  StartOptions options;
  options.timeout = kBootLimit;
  options.users = config.hypervisor.users;
  options.users_lock = UsersLock(config.paths.run_dir);
  ASSIGN_OR_RETURN(const std::unique_ptr<Vm> vm, QemuVm::Start(spec, options));
  const auto deadline = steady_clock::now() + kBootLimit;
  absl::Status status = absl::DeadlineExceededError("the guest did not answer");
  while (vm->Alive().ok() && steady_clock::now() < deadline) {
    auto client = ttrpc::Client::Dial(RpcSocket(dir), "agent");
    if (!client.ok()) {
      status = client.status();
      poll(nullptr, 0, 20);
      continue;
    }
    status = guest::Greet(**client, deadline - steady_clock::now()).status();
    if (status.ok()) break;
  }
  RETURN_IF_ERROR(vm->Kill(std::chrono::seconds(5)));
  return status;
}

}  // namespace

absl::StatusOr<Accel> ChooseAccel(const Config& config) {
  for (const Accel accel : {Accel::kKvm, Accel::kTcg}) {
    if (config.hypervisor.accel == AccelName(accel)) return accel;
  }
  // What is not there boots nowhere: that is no answer to keep.
  ASSIGN_OR_RETURN(const std::string kernel, FileKey(config.kernel()));
  ASSIGN_OR_RETURN(const std::string initramfs, FileKey(config.initramfs()));
  ASSIGN_OR_RETURN(const std::string qemu, FileKey(ProgramPath(config.hypervisor.qemu)));
  FileSystem& fs = FileSystem::Real();
  RETURN_IF_ERROR(fs.MakeDirectories(config.paths.run_dir, 0700));
  const std::string path = config.paths.run_dir + "/accel";
  const UniqueFd lock(open((path + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock) return ErrnoStatus(errno, "open " + path + ".lock");
  const auto deadline = steady_clock::now() + kLockLimit;
  while (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return ErrnoStatus(errno, "lock " + path + ".lock");
    if (steady_clock::now() >= deadline) {
      return MakeStatus(absl::StatusCode::kDeadlineExceeded,
                        "another process has held {}.lock, for its trial of KVM, for {} s", path,
                        kLockLimit.count());
    }
    poll(nullptr, 0, 20);
  }
  const std::string key = fmt::format("{} {} {} {}\n", kernel, initramfs, qemu, BootId());
  const std::string known = fs.Read(path, 4096).value_or("");
  const auto line = [&](Accel accel) { return fmt::format("{} {}", AccelName(accel), key); };
  for (const Accel accel : {Accel::kKvm, Accel::kTcg}) {
    if (known == line(accel)) return accel;
  }
  Accel accel = Accel::kTcg;
  if (access("/dev/kvm", R_OK | W_OK) == 0) {
    const std::string dir = config.paths.run_dir + "/probe";
    EndLeftProbe(dir);
    RETURN_IF_ERROR(fs.MakeDirectories(dir, 0700));
    const absl::Status status = TryKvm(config, dir);
    fs.RemoveTree(dir).IgnoreError();
    if (status.ok()) {
      accel = Accel::kKvm;
    } else {
      LogWarning("KVM is there but does not boot a guest, so VMs are emulated: {}", Message(status));
    }
  }
  RETURN_IF_ERROR(WriteFileAtomically(fs, path, line(accel), 0600));
  return accel;
}

}  // namespace lamina::vmm
