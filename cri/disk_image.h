// Files that become disks of a VM: sparse ext4 images in folders of the node, made where containerd and the
// kubelet count what lies there.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace lamina::cri {

// Their names in the folders that they are made in.
inline constexpr char kRootImage[] = "lamina-root.img";      // a snapshot's upper folder
inline constexpr char kVolumeImage[] = "lamina-volume.img";  // an emptyDir

struct DiskImageOptions {
  uint64_t bytes = 0;  // at most: it is made no larger than what the folder's file system has free
  // For what outlives its VM: one that ended without a farewell leaves a file system that the next can mount.
  bool journal = false;
  bool keep = false;  // an image that is there stays as it is; else it is replaced
};

// Threads: any, for different paths at the same time. All but the image's own name is as OpenTrustedFolder
// takes it; the name is no link.

// Makes an image: mode 0600, holes but for some 100 KiB, an empty file system. Gives its size. It has its
// name only when it is whole. InvalidArgument for a size out of [kMinDiskBytes, kMaxDiskBytes];
// ResourceExhausted: less than the least is free. On error nothing stays.
absl::StatusOr<uint64_t> MakeDiskImage(const std::string& path, const DiskImageOptions& options);
// To be read and written. NotFound; FailedPrecondition: it is no file.
absl::StatusOr<UniqueFd> OpenDiskImage(const std::string& path);
// OK when it is not there (any more), nor its folder.
absl::Status RemoveDiskImage(const std::string& path);

}  // namespace lamina::cri
