// Read-only dm-linear devices over regions of /dev/pmemN, by ioctl on /dev/mapper/control (libdevmapper
// cannot be linked statically).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::guest {

struct LinearMapping {
  std::string name;   // "dm-linear-pmem0-2097152-1048576"
  std::string table;  // "0 2048 linear /dev/pmem0 4096"
};

// What maps [offset, offset+size) of `pmem` ("pmem0"). InvalidArgument when offset or size is no multiple of
// 4096, size is 0, their sum overflows or `pmem` is not "pmem<number>".
absl::StatusOr<LinearMapping> PlanLinear(std::string_view pmem, uint64_t offset, uint64_t size);

// Thread-safe; each call stands for itself.
class DeviceMapper {
 public:
  // Creates the device, loads the table read-only and resumes it; answers the node ("/dev/dm-0"). A device of
  // that name with that table is taken as it is; with another table: AlreadyExists. EBUSY, ENOENT, ENXIO and
  // ENODEV, which come for a moment after a hotplug, are tried again up to 20 times, 25 ms apart; a device
  // half made is removed.
  static absl::StatusOr<std::string> CreateLinear(const LinearMapping& mapping);
  // Removes it; OK when there is none. EBUSY is tried again up to 40 times, 25 ms apart.
  static absl::Status Remove(const std::string& name);
};

}  // namespace lamina::guest
