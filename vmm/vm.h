// One running VM, as the shim sees it: the seam. The real one is QemuVm, a test's is FakeVm.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "vmm/balloon.h"
#include "vmm/resize.h"
#include "vmm/scsi.h"
#include "vmm/vm_spec.h"

namespace lamina::vmm {

// Thread-safe. The VM outlives this object unless Kill was called: a shim may end and its cleanup take over.
class Vm {
 public:
  virtual ~Vm() = default;

  // The hypervisor's process; with its start time (clock ticks since boot) a name for ever.
  virtual pid_t pid() const = 0;
  virtual uint64_t start_time() const = 0;

  // Makes the first `arena.bytes` of an arena visible in the guest, as a device of its own, unless a device
  // of it is there that shows `end` bytes: then gives that one's path, always the same. ResourceExhausted: no
  // root port is free. NotFound, InvalidArgument: no such file, or it is shorter than said.
  virtual absl::StatusOr<std::string> AttachArena(const ArenaDevice& arena, uint64_t end) = 0;
  // Root ports that are still free.
  virtual size_t free_ports() const = 0;
  // The devices; an arena may have several, each larger than the one before.
  virtual std::vector<ArenaDevice> arenas() const = 0;
  // Its disks. Controllers take a root port each, with their first disk. Lives as long as this object.
  virtual ScsiDisks& scsi() = 0;
  // Grows and shrinks it. Lives as long as this object.
  virtual Resizer& resizer() = 0;
  // Its virtio-balloon. Lives as long as this object.
  virtual Balloon& balloon() = 0;

  // OK while it lives, else why it is gone with the end of its log.
  virtual absl::Status Alive() const = 0;
  // Blocks until the VM has ended, and reaps it: true. False: the process behind `helper` (a pidfd; -1: none)
  // has ended, and the VM did not follow it within a second. Meanwhile it keeps the logs in the VM's runtime
  // directory short, as a thread of the VM's has done until the first call: somebody should wait from then on
  // as long as the VM lives.
  virtual bool WaitExit(int helper) = 0;
  // Ends it with SIGKILL (it holds nothing that a farewell would save); returns when the process is seen
  // dead, or DeadlineExceeded. Repeatable.
  virtual absl::Status Kill(std::chrono::milliseconds timeout) = 0;
};

}  // namespace lamina::vmm
