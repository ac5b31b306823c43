// Finds block devices and virtio-serial ports by where the host plugged them in; waits for what is being
// plugged in.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::guest {

// "04.0/00.0" -> {"04.0", "00.0"}: slots of two hex digits and a function 0-7, from the root bus down, 1 to 8
// of them.
absl::StatusOr<std::vector<std::string>> ParsePciPath(std::string_view path);

// The variables of a kernel uevent ("add@/devices/…\0ACTION=add\0…"); empty for what is none.
std::map<std::string, std::string> ParseUevent(std::string_view datagram);

// Looks things up under a sysfs mount. Stateless but for the path; thread-safe. NotFound: not there (yet).
class Sysfs {
 public:
  explicit Sysfs(std::string root = "/sys") : root_(std::move(root)) {}
  // Real path of the PCI device; bus numbers are the guest's own, so only slots count.
  absl::StatusOr<std::string> FindPci(std::string_view pci_path) const;
  // "pmem0" below that PCI device.
  absl::StatusOr<std::string> FindPmem(std::string_view pci_path) const;
  // "sda": the disk at target:lun of that virtio-scsi controller.
  absl::StatusOr<std::string> FindScsiDisk(std::string_view pci_path, uint32_t target, uint32_t lun) const;
  // Asks the controller to look at target:lun (an event may have been lost).
  absl::Status ScanScsi(std::string_view pci_path, uint32_t target, uint32_t lun) const;
  // Removes the disk from the guest's kernel; OK when it is gone already.
  absl::Status DeleteScsiDisk(std::string_view block_name) const;
  absl::StatusOr<uint64_t> BlockSizeBytes(std::string_view block_name) const;
  // "vport2p1": the virtio-serial port of that name.
  absl::StatusOr<std::string> FindSerialPort(std::string_view port_name) const;
  // "eth0": the network device with that MAC (lower-case).
  absl::StatusOr<std::string> FindNetDevice(std::string_view mac) const;
  // The modalias of every virtio device there is.
  std::vector<std::string> VirtioModaliases() const;

 private:
  absl::StatusOr<std::string> FindBlockBelow(const std::string& device, const std::string& part,
                                             std::string_view driver) const;
  const std::string root_;
};

// Makes the kernel refuse writes to the block device, or take them (BLKROSET). NotFound while a device that
// sysfs shows already cannot be opened yet.
absl::Status SetReadOnly(const std::string& device_node, bool read_only = true);

// Listens for uevents on one small thread. Thread-safe.
class DeviceMonitor {
 public:
  // `on_virtio` is told, on that thread, the modalias of each virtio device that appears.
  static absl::StatusOr<std::unique_ptr<DeviceMonitor>> Start(
      std::function<void(const std::string& modalias)> on_virtio);
  ~DeviceMonitor();

  // Repeats `find` after each uevent (and at least every 250 ms) while it answers NotFound; its last answer
  // once `timeout` has passed.
  absl::StatusOr<std::string> WaitFor(const std::function<absl::StatusOr<std::string>()>& find,
                                      std::chrono::milliseconds timeout);

 private:
  class Impl;
  explicit DeviceMonitor(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// How long the host's devices are waited for.
inline constexpr std::chrono::seconds kDeviceTimeout{10};

// WaitFor, up to kDeviceTimeout; then DeadlineExceeded: a device that never came is the host's failure, no
// missing object.
absl::StatusOr<std::string> AwaitDevice(DeviceMonitor& monitor,
                                        const std::function<absl::StatusOr<std::string>()>& find);

}  // namespace lamina::guest
