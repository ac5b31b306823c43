// An image's layers from the mounts that containerd's snapshotter gives.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/containerd/task.pb.h"

namespace lamina::cri {

// What the answer depends on beside the mounts; replaced in tests.
struct HostMounts {
  std::string mountinfo;                                            // of the shim's namespace
  std::function<std::string(const std::string& device)> loop_file;  // "7:3" -> its backing file, or empty
};
HostMounts ReadHostMounts();

// Directories and EROFS blobs, topmost first. Taken are: overlay mounts (overlayfs snapshotter), bind mounts
// of one directory, erofs mounts (EROFS snapshotter, containerd 2.1 and later; a merged one with device=
// options is its layers), and overlay templates above those. A lower directory that is itself a mounted EROFS
// blob is answered as the blob, which needs no conversion. Writable tops are passed over: Lamina's are in the
// guest. InvalidArgument for mounts of another type, and where no layer is left.
absl::StatusOr<std::vector<std::string>> LayerSources(
    const google::protobuf::RepeatedPtrField<containerd::Mount>& rootfs, const HostMounts& host);

// The folder that the snapshotter counts as the snapshot's own, where the writable layer is kept: an
// overlay's upper directory; of a bind mount that may be written, the directory itself; of the EROFS
// snapshotter's block mode, the one that its image would lie in. Empty: there is none, or the root is to be
// read only.
std::string UpperDir(const google::protobuf::RepeatedPtrField<containerd::Mount>& rootfs);

}  // namespace lamina::cri
