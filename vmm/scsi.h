// SCSI disks of one VM: 4 controllers of 64 LUNs, hot-added and hot-removed.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/unique_fd.h"

namespace lamina::vmm {

inline constexpr uint32_t kScsiControllers = 4, kScsiLuns = 64;

struct DiskPlace {
  std::string pci_path;  // of the virtio-scsi controller
  uint32_t target = 0, lun = 0;
};

// What a disk is on the host: a file, or a block device.
struct DiskFile {
  std::string path;       // its name: who asks for the same path shares the disk
  bool writable = false;  // false: to be read only, whatever the guest does
  // Opens it (to be read, or for both where it is writable) each time that it is attached; on any thread.
  // None: by its path, which nobody but root and laminad can have made.
  std::function<absl::StatusOr<UniqueFd>()> open = nullptr;
};

// The hypervisor's side. Called without any lock of ScsiDisks, for different disks at the same time.
class ScsiHost {
 public:
  virtual ~ScsiHost() = default;
  // Gives its PCI path. On error there is no controller.
  virtual absl::StatusOr<std::string> AddController(uint32_t index) = 0;
  virtual absl::Status AddDisk(uint32_t controller, uint32_t lun, const DiskFile& file) = 0;
  // Removes what AddDisk made, or what it left when it failed. OK when nothing is there; repeatable, and goes
  // on where it failed.
  virtual absl::Status RemoveDisk(uint32_t controller, uint32_t lun) = 0;
  // Lets the guest see the size that the block device has by now.
  virtual absl::Status GrowDisk(uint32_t controller, uint32_t lun, uint64_t bytes) = 0;
};

// Who needs a disk holds a reservation of its own, whatever others do with the same image:
//
//   id = Reserve("/layers/big.erofs")   takes a LUN, or shares the one that the image has
//   place = Map(id)                     the disk is attached; repeated: the same place
//   Unmap(id)                           the last one detaches it; repeated: OK
//
// Thread-safe; different disks are attached and detached in parallel. A disk whose attaching failed is
// cleaned up before it is tried again, and its LUN is not given away before.
class ScsiDisks {
 public:
  // `reserved`: {controller, lun} that are never given.
  explicit ScsiDisks(ScsiHost& host, std::set<std::pair<uint32_t, uint32_t>> reserved = {})
      : host_(host), reserved_(std::move(reserved)) {}

  // Does not touch the VM. ResourceExhausted: every LUN is taken. FailedPrecondition: it is wanted writable,
  // and others have it as one to be read only; the other way round the disk is shared, and the guest keeps
  // who may write. Nothing is held then. Ids are never used again.
  absl::StatusOr<uint64_t> Reserve(DiskFile file);
  absl::StatusOr<uint64_t> Reserve(const std::string& image) { return Reserve(DiskFile{.path = image}); }
  // Where another is attaching the same disk, waits for it and gets its error too. The reservation stays
  // after an error: Map can be repeated, Unmap gives it up. NotFound: no such reservation.
  absl::StatusOr<DiskPlace> Map(uint64_t id);
  // OK for what is no reservation (any more). On error the reservation stays, for Unmap to be repeated. The
  // guest must have let go of the disk.
  absl::Status Unmap(uint64_t id);
  // The host's device behind the disk has `bytes` now: the guest sees them, and its users go on meanwhile.
  // FailedPrecondition: it is not attached.
  absl::Status Grow(uint64_t id, uint64_t bytes);

  // Reservations, and LUNs in use.
  size_t reservations() const;
  size_t disks() const;

 private:
  struct Disk {
    DiskFile file;
    uint32_t controller = 0, lun = 0;
    size_t users = 0;       // reservations
    bool attached = false;  // as far as we know, and nothing is left to clean up
    bool dirty = false;     // a failed call may have left something
    bool busy = false;      // a call to the hypervisor is under way
    uint64_t attempt = 0;   // counts attachings, for those who wait
    absl::Status outcome;   // of the last one
  };
  struct Controller {
    std::string pci_path;  // empty: not there yet
    bool busy = false;
  };

  absl::StatusOr<std::string> ControllerPath(uint32_t index) EXCLUDES(mutex_);

  ScsiHost& host_;
  const std::set<std::pair<uint32_t, uint32_t>> reserved_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::map<std::string, Disk> disks_ GUARDED_BY(mutex_);             // by path
  std::map<uint64_t, std::string> reservations_ GUARDED_BY(mutex_);  // id -> path
  std::map<uint32_t, Controller> controllers_ GUARDED_BY(mutex_);
  uint64_t next_id_ GUARDED_BY(mutex_) = 1;
};

}  // namespace lamina::vmm
