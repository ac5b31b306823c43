// One running QEMU.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "vmm/qmp_client.h"
#include "vmm/vm_spec.h"

namespace lamina::vmm {

struct StartOptions {
  std::string netns_path;                       // empty: the caller's
  std::vector<std::string> cgroup_procs_files;  // joined before exec
  int tap_fd = -1;                              // ours; given to QEMU as VmSpec::tap_fd
  std::chrono::milliseconds timeout = std::chrono::seconds(30);
};

struct DiskPlace {
  std::string pci_path;  // of the virtio-scsi controller
  uint32_t target = 0, lun = 0;
};

// Thread-safe. The VM outlives this object unless Kill was called: a shim may end and its cleanup take over.
class Vm {
 public:
  // Starts QEMU and waits until its control socket answers. An error carries the end of QEMU's log, and
  // nothing is left running. InvalidArgument: a spec that cannot be; NotFound: a file that is not there.
  static absl::StatusOr<std::unique_ptr<Vm>> Start(const VmSpec& spec, const StartOptions& options);
  ~Vm();

  pid_t pid() const { return pid_; }
  uint64_t start_time() const { return start_time_; }
  // For Resizer; lives as long as this object.
  QmpClient& qmp() { return *qmp_; }

  // Makes an arena visible in the guest; the same arena again gives the same path. ResourceExhausted: no root
  // port is free. NotFound, InvalidArgument: no such file, or it is shorter than said.
  absl::StatusOr<std::string> AttachArena(const ArenaDevice& arena);
  // Root ports that are still free.
  size_t free_ports() const;
  std::vector<std::string> attached_arenas() const;

  // Read-only SCSI disk; the same image again is one attachment, counted. ResourceExhausted: 4 controllers ×
  // 64 LUNs, or the ports, are used up.
  absl::StatusOr<DiskPlace> AttachDisk(const std::string& image_path);
  // Takes one count back; the last one removes the disk (the guest must have let go of it). Unknown: OK.
  // Repeatable after an error.
  absl::Status DetachDisk(const std::string& image_path);

  // OK while QEMU lives, else why it is gone with the end of its log.
  absl::Status Alive() const;
  // Blocks until QEMU has ended. Reaps it.
  void WaitExit();
  // Ends QEMU with SIGKILL (it holds nothing that a farewell would save); returns when the process is seen
  // dead, or DeadlineExceeded. Repeatable.
  absl::Status Kill(std::chrono::milliseconds timeout);

 private:
  Vm() = default;
  struct Disk {
    uint32_t controller = 0, lun = 0, users = 0;
    bool attached = false;  // QEMU may have the device, not only its image
  };
  absl::StatusOr<uint32_t> TakePortLocked() REQUIRES(mutex_);
  absl::StatusOr<std::string> ControllerLocked(uint32_t index) REQUIRES(mutex_);
  absl::Status RemoveDiskLocked(const std::string& image_path) REQUIRES(mutex_);

  pid_t pid_ = 0;
  uint64_t start_time_ = 0;
  UniqueFd pidfd_;
  std::string log_path_;
  std::unique_ptr<QmpClient> qmp_;

  mutable Mutex mutex_;
  std::vector<bool> ports_used_ GUARDED_BY(mutex_);
  std::map<std::string, std::string> arenas_ GUARDED_BY(mutex_);    // id -> pci path
  std::map<uint32_t, std::string> controllers_ GUARDED_BY(mutex_);  // index -> pci path
  std::map<std::string, Disk> disks_ GUARDED_BY(mutex_);            // by image path
};

}  // namespace lamina::vmm
