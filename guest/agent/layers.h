// The pod's image layers, mounted read-only at <root>/layers/<id>: EROFS on dm-linear on virtio-pmem (with
// DAX), or on a SCSI disk, with dm-verity between where the host gave a hash tree.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "guest/agent/devices.h"
#include "guest/agent/modules.h"

namespace lamina::agent::v1 {
class Layer;
class LayerResult;
class ScsiDisk;
}  // namespace lamina::agent::v1

namespace lamina::guest {

// Thread-safe. One layer is worked on by one thread; different layers by several.
class LayerTable {
 public:
  // <root>/layers/<id> are the mounts; <root>/l/<number> are short links to them for overlay's options.
  LayerTable(std::string root, ModuleLoader& modules, DeviceMonitor& monitor, Sysfs sysfs)
      : root_(std::move(root)), modules_(modules), monitor_(monitor), sysfs_(std::move(sysfs)) {}

  // Mounts the layer; at once when it is mounted from the same place. AlreadyExists when its id is mounted
  // from another place; DeadlineExceeded when the device does not appear in 10 s. On error nothing of it is
  // left, or what is left is removed by the next Mount of the layer or of its place, or by Unmount.
  absl::StatusOr<agent::v1::LayerResult> Mount(const agent::v1::Layer& layer);

  // Unmounts it and removes its dm device and disks; OK when it is not there; can be repeated where it
  // failed. FailedPrecondition while a container uses it.
  absl::Status Unmount(const std::string& id);

  // The short links of the layers, in the same order, each layer held until Release. NotFound names the
  // missing one.
  absl::StatusOr<std::vector<std::string>> Acquire(const std::vector<std::string>& ids);
  void Release(const std::vector<std::string>& ids);

  // Every layer, whether used or not; for the shutdown, when no container is left.
  void UnmountAll();

  std::string links_directory() const { return root_ + "/l"; }
  std::string MountPoint(const std::string& id) const { return root_ + "/layers/" + id; }

 private:
  struct Entry {
    std::string place;  // text of the layer's place, to tell a repetition from a conflict
    std::string dm_name;
    std::vector<std::string> disks;  // "sda": the layer's, then its hash tree's
    bool mounted = false, busy = false, dax = false;
    int users = 0;
    unsigned link = 0;
  };

  absl::Status MountPmem(const agent::v1::Layer& layer, Entry& entry, agent::v1::LayerResult& result);
  absl::Status MountScsi(const agent::v1::Layer& layer, Entry& entry, agent::v1::LayerResult& result);
  // Waits for the disk, makes it read-only and notes it in `entry`.
  absl::StatusOr<std::string> FindDisk(const agent::v1::ScsiDisk& disk, Entry& entry);
  absl::Status Undo(const std::string& id, Entry& entry);
  absl::Status Remove(const std::string& id, bool only_leftovers);
  absl::Status RemoveLeftovers(const std::string& id, const std::string& place);
  Entry* WaitIdle(const std::string& id) REQUIRES(mutex_);

  const std::string root_;
  ModuleLoader& modules_;
  DeviceMonitor& monitor_;
  const Sysfs sysfs_;
  Mutex mutex_;
  CondVar idle_;
  std::map<std::string, Entry> entries_ GUARDED_BY(mutex_);
  std::set<unsigned> links_ GUARDED_BY(mutex_);
};

}  // namespace lamina::guest
