// The directory that virtiofsd shares with the guest, and the bind mounts in it.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace lamina::cri {

// Makes `dir` a read-only mount of <dir>.points, where the mount points of volumes are made: what is in `dir`
// itself only this side can change, so that the guest can neither fill the host's /run nor put a link in a
// mount point's way. Its propagation is shared: what is mounted in it is seen from virtiofsd's mount
// namespace, which was made before. Repeated: OK.
absl::Status MakeSharedDir(const std::string& dir);

struct VolumeOptions {
  // On the host's side, so that the guest cannot write whatever it does; not what is mounted below it, unless
  // that too is to be read-only.
  bool read_only = false, recursive_read_only = false;
  bool follows_host = false;  // what the host mounts below it later appears too (HostToContainer)
};

// Puts `source` (file or directory, with what is mounted below it) at <shared_dir>/<name>. Device nodes
// cannot be opened there, and setuid files are nothing special; what the host mounts below it later has the
// host's own attributes. What happens to these mounts never reaches the host's own. On error nothing stays.
// NotFound names a missing source. Needs Linux 5.12 (mount_setattr).
absl::Status BindVolume(const std::string& shared_dir, const std::string& name, const std::string& source,
                        VolumeOptions options);

// Lets the guest write a volume that was read-only, for a container that came later; also in the mount
// namespace of the process `virtiofsd`, which has a copy of it.
absl::Status LetWrite(const std::string& shared_dir, const std::string& name, pid_t virtiofsd);

// Unmounts and removes one; gone already: OK.
absl::Status UnbindVolume(const std::string& shared_dir, const std::string& name);

// Unmounts all below `dir`, and `dir` itself. Paths inside a volume, which the guest may change meanwhile,
// are not followed.
absl::Status UnmountTree(const std::string& dir);

}  // namespace lamina::cri
