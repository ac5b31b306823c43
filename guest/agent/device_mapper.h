// Read-only device-mapper devices, by ioctl on /dev/mapper/control (libdevmapper cannot be linked
// statically): dm-linear over regions of /dev/pmemN, dm-verity over SCSI disks.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::guest {

// A device of one target.
struct Mapping {
  std::string name;  // "dm-linear-pmem0-2097152-1048576"
  uint64_t sectors = 0;
  std::string target;      // "linear"
  std::string parameters;  // with the paths of devices: "/dev/pmem0 4096"
};

// What maps [offset, offset+size) of `pmem` ("pmem0"). InvalidArgument when offset or size is no multiple of
// 4096, size is 0, their sum overflows or `pmem` is not "pmem<number>".
absl::StatusOr<Mapping> PlanLinear(std::string_view pmem, uint64_t offset, uint64_t size);

// What shows the first `size` bytes of the disk `data` ("sdb") where they agree with the hash tree on the
// disk `tree` and the 64 hex digits of its root, and an I/O error elsewhere: dm-verity's format 1, sha256,
// blocks of 4096, no salt, no superblock. InvalidArgument when the disks are not "sd<letters>" or the same,
// `size` is 0 or no multiple of 4096, or `root_hash` is not one.
absl::StatusOr<Mapping> PlanVerity(std::string_view data, std::string_view tree, uint64_t size,
                                   std::string_view root_hash);

// Thread-safe; each call stands for itself.
class DeviceMapper {
 public:
  // Creates the device, loads the table read-only and resumes it; answers the node ("/dev/dm-0"). A device of
  // that name with that table is taken as it is; with another table: AlreadyExists. EBUSY, ENOENT, ENXIO and
  // ENODEV, which come for a moment after a hotplug, are tried again up to 20 times, 25 ms apart; a device
  // half made is removed.
  static absl::StatusOr<std::string> Create(const Mapping& mapping);
  // Removes it; OK when there is none. EBUSY is tried again up to 40 times, 25 ms apart.
  static absl::Status Remove(const std::string& name);
};

}  // namespace lamina::guest
