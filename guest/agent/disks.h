// SCSI disks that the host plugs in, found by their place; mounting is others' business.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "guest/agent/devices.h"

namespace lamina::agent::v1 {
class ScsiDisk;
}

namespace lamina::guest {

// "sda", once it is there and /dev/sda can be opened, made read-only or writable. After a second without it
// the controller is asked to look. DeadlineExceeded after kDeviceTimeout; InvalidArgument for a place that
// cannot be.
absl::StatusOr<std::string> AwaitDisk(DeviceMonitor& monitor, const Sysfs& sysfs,
                                      const agent::v1::ScsiDisk& disk, bool read_only);

// InvalidArgument: `name` is of another size than the host has said.
absl::Status CheckDiskSize(const Sysfs& sysfs, const std::string& name, const agent::v1::ScsiDisk& disk);

}  // namespace lamina::guest
