// The pod's volumes that lie in the guest, at <root>/volumes/<name>: each once, whatever containers use it.
#pragma once

#include <map>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "base/mutex.h"

namespace lamina::agent::v1 {
class MountVolumeRequest;
}

namespace lamina::guest {

// Thread-safe; one volume is worked on at a time.
class VolumeTable {
 public:
  explicit VolumeTable(std::string root) : directory_(std::move(root) + "/volumes") {}

  // Mounts it, and makes the folders in it that are not there. Repeated: only the folders. AlreadyExists: a
  // volume of that name is another one. InvalidArgument names what cannot be. On error it is as it was.
  absl::Status Mount(const agent::v1::MountVolumeRequest& request);
  // OK when there is none. FailedPrecondition: something still uses it.
  absl::Status Unmount(const std::string& name);
  // All of them, for the end, when no container is left.
  void UnmountAll();

  std::string MountPoint(const std::string& name) const { return directory_ + "/" + name; }

 private:
  absl::Status MountNew(const agent::v1::MountVolumeRequest& request);

  const std::string directory_;
  Mutex mutex_;
  std::map<std::string, std::string> volumes_ GUARDED_BY(mutex_);  // name -> what it is, to tell a repetition
};

}  // namespace lamina::guest
