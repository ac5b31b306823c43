// Disks of the guest that are written: an ext4 file system that the host made, or a block device as it is.
#pragma once

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "guest/agent/devices.h"
#include "guest/agent/modules.h"

namespace lamina::agent::v1 {
class ScsiDisk;
}

namespace lamina::guest {

// Keeps nothing itself: who has a disk keeps its name. Thread-safe. Errors of a disk that does not come as
// AwaitDisk's.
class DiskVolumes {
 public:
  DiskVolumes(ModuleLoader& modules, DeviceMonitor& monitor, Sysfs sysfs)
      : modules_(modules), monitor_(monitor), sysfs_(std::move(sysfs)) {}

  // "sda", once it is there. Its size is what it is, not what the host says: it may grow. On error the guest
  // has let go of it.
  absl::StatusOr<std::string> Attach(const agent::v1::ScsiDisk& disk, bool read_only) const;
  // Mounts the file system on `name` at the directory `target`, and empties it of what mke2fs put there.
  static absl::Status Mount(const std::string& name, const std::string& target);
  // Of what is free in the file system mounted at `target` no more than `room_bytes` can be taken: who writes
  // is told at once that the disk is full, not by a sync that fails. 0: all can.
  static absl::Status SetRoom(const std::string& name, const std::string& target, uint64_t room_bytes);
  // The guest lets go of the disk. OK when it is gone already.
  absl::Status Detach(const std::string& name) const { return sysfs_.DeleteScsiDisk(name); }

 private:
  ModuleLoader& modules_;
  DeviceMonitor& monitor_;
  const Sysfs sysfs_;
};

}  // namespace lamina::guest
