// The pod's volumes that lie in the guest, at <root>/volumes/<name>: each once, whatever containers use it.
#pragma once

#include <map>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "guest/agent/disk_volumes.h"

namespace lamina::agent::v1 {
class MountVolumeRequest;
}

namespace lamina::guest {

// Thread-safe; one volume is worked on at a time.
class VolumeTable {
 public:
  // `disks` outlives it; without them it refuses volumes on disks.
  explicit VolumeTable(std::string root, const DiskVolumes* disks = nullptr)
      : directory_(std::move(root) + "/volumes"), disks_(disks) {}

  // Mounts it, and makes the folders in it that are not there. Repeated: only the folders. AlreadyExists: a
  // volume of that name is another one. InvalidArgument names what cannot be. On error it is as it was.
  absl::Status Mount(const agent::v1::MountVolumeRequest& request);
  // The device node of a block volume. NotFound: there is none of that name.
  absl::StatusOr<std::string> DeviceOf(const std::string& name);
  // OK when there is none; where it failed it goes on when repeated. FailedPrecondition: something still uses
  // it.
  absl::Status Unmount(const std::string& name);
  // All of them, for the end, when no container is left.
  void UnmountAll();

  std::string MountPoint(const std::string& name) const { return directory_ + "/" + name; }

 private:
  struct Volume {
    std::string identity;  // what it is, to tell a repetition
    std::string disk;      // "sda"; empty: it has none
    bool mounted = false;
    bool whole = false;  // false: what is left of one that failed
  };

  absl::Status MountNew(const agent::v1::MountVolumeRequest& request, Volume& volume);
  absl::Status UnmountOne(const std::string& name, Volume& volume);

  const std::string directory_;
  const DiskVolumes* const disks_;
  Mutex mutex_;
  std::map<std::string, Volume> volumes_ GUARDED_BY(mutex_);  // by name
};

}  // namespace lamina::guest
