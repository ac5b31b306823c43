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
#include "vmm/scsi.h"
#include "vmm/vm_spec.h"

namespace lamina::vmm {

struct StartOptions {
  std::string netns_path;                       // empty: the caller's
  std::vector<std::string> cgroup_procs_files;  // joined before exec
  int tap_fd = -1;                              // ours; given to QEMU as VmSpec::tap_fd
  std::chrono::milliseconds timeout = std::chrono::seconds(30);
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

  // Makes the first `arena.bytes` of an arena visible in the guest, as a device of its own, unless a device
  // of it is there that shows `end` bytes: then gives that one's path, always the same. ResourceExhausted: no
  // root port is free. NotFound, InvalidArgument: no such file, or it is shorter than said.
  absl::StatusOr<std::string> AttachArena(const ArenaDevice& arena, uint64_t end);
  // Root ports that are still free.
  size_t free_ports() const;
  // The devices; an arena may have several, each larger than the one before.
  std::vector<ArenaDevice> arenas() const;
  // Read-only disks. Controllers take a root port each, with their first disk.
  ScsiDisks& scsi() { return *scsi_; }

  // OK while QEMU lives, else why it is gone with the end of its log.
  absl::Status Alive() const;
  // Blocks until QEMU has ended, and reaps it: true. False: the process behind `helper` (a pidfd; -1: none)
  // has ended, and QEMU did not follow it within a second.
  bool WaitExit(int helper = -1);
  // Ends QEMU with SIGKILL (it holds nothing that a farewell would save); returns when the process is seen
  // dead, or DeadlineExceeded. Repeatable.
  absl::Status Kill(std::chrono::milliseconds timeout);

 private:
  class QemuScsi;
  struct Window {
    ArenaDevice arena;
    std::string pci_path;
  };
  Vm();
  absl::StatusOr<uint32_t> TakePortLocked() REQUIRES(mutex_);

  pid_t pid_ = 0;
  uint64_t start_time_ = 0;
  UniqueFd pidfd_;
  std::string log_path_;
  std::unique_ptr<QmpClient> qmp_;

  mutable Mutex mutex_;
  std::vector<bool> ports_used_ GUARDED_BY(mutex_);
  std::vector<Window> windows_ GUARDED_BY(mutex_);                    // in the order of their attaching
  std::map<uint32_t, uint32_t> controller_ports_ GUARDED_BY(mutex_);  // a controller is there, or may be
  std::unique_ptr<QemuScsi> scsi_host_;
  std::unique_ptr<ScsiDisks> scsi_;
};

}  // namespace lamina::vmm
