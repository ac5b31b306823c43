// What a running QEMU has been given so far, as it tells itself: for a process that goes on with a VM that
// another one started.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "vmm/qmp_client.h"
#include "vmm/vm_spec.h"

namespace lamina::vmm {

// An arena's device, and where the guest finds it. QEMU does not know the arena's path: read back, it is
// empty.
struct ArenaWindow {
  ArenaDevice arena;
  std::string pci_path;
};

struct QemuDevices {
  uint32_t ports = 0;  // PCIe root ports
  std::set<uint32_t> used_ports;
  std::vector<ArenaWindow> windows;                // of one arena: each larger than the one before
  std::map<uint32_t, uint32_t> controllers;        // SCSI controller -> its port
  std::set<std::pair<uint32_t, uint32_t>> places;  // {controller, lun} of disks that are there
};

// Internal names an answer that makes no sense; other errors as QmpClient::Execute's.
absl::StatusOr<QemuDevices> ReadDevices(QmpClient& qmp);

}  // namespace lamina::vmm
