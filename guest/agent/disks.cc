#include "guest/agent/disks.h"

#include <chrono>

#include "base/status.h"
#include "proto/agent.pb.h"

namespace lamina::guest {
namespace {

using std::chrono::steady_clock;

// After this long without a disk the controller is asked to look: an event may have been lost.
constexpr auto kScanAfter = std::chrono::seconds(1);

}  // namespace

absl::StatusOr<std::string> AwaitDisk(DeviceMonitor& monitor, const Sysfs& sysfs,
                                      const agent::v1::ScsiDisk& disk, bool read_only) {
  if (disk.target() > 255 || disk.lun() > 16383) {
    return InvalidArgument("SCSI target {} lun {}: out of range", disk.target(), disk.lun());
  }
  const auto start = steady_clock::now();
  bool scanned = false;
  const auto find = [&]() -> absl::StatusOr<std::string> {
    auto name = sysfs.FindScsiDisk(disk.pci_path(), disk.target(), disk.lun());
    if (!name.ok() && !scanned && steady_clock::now() - start > kScanAfter) {
      scanned = sysfs.ScanScsi(disk.pci_path(), disk.target(), disk.lun()).ok();
    }
    if (name.ok()) RETURN_IF_ERROR(SetReadOnly("/dev/" + *name, read_only));
    return name;
  };
  return AwaitDevice(monitor, find);
}

absl::Status CheckDiskSize(const Sysfs& sysfs, const std::string& name, const agent::v1::ScsiDisk& disk) {
  ASSIGN_OR_RETURN(const uint64_t size, sysfs.BlockSizeBytes(name));
  if (size == disk.size()) return absl::OkStatus();
  return InvalidArgument("disk {} at SCSI {}:{} has {} bytes, not {}", name, disk.target(), disk.lun(), size,
                         disk.size());
}

}  // namespace lamina::guest
