// Block devices of the node, by their numbers: a spec names no path of the node for them.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace lamina::cri {

struct DeviceNumber {
  uint32_t major = 0, minor = 0;
  bool operator==(const DeviceNumber&) const = default;
  auto operator<=>(const DeviceNumber&) const = default;
};

// "/dev/loop3". NotFound: the node has no such block device.
absl::StatusOr<std::string> BlockDevicePath(DeviceNumber number);
// As above, opened; what stands at the path must be that device. PermissionDenied: it is read-only and wanted
// writable.
absl::StatusOr<UniqueFd> OpenBlockDevice(DeviceNumber number, bool writable);
absl::StatusOr<uint64_t> BlockDeviceBytes(DeviceNumber number);

}  // namespace lamina::cri
