// ScsiDisks' calls as QMP commands.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "base/mutex.h"
#include "vmm/hotplug_ports.h"
#include "vmm/qmp_client.h"
#include "vmm/scsi.h"

namespace lamina::vmm {

// Thread-safe. `qmp` and `ports` outlive it.
class QemuScsi : public ScsiHost {
 public:
  // `controllers`: those that the VM has already, and their ports.
  QemuScsi(QmpClient& qmp, HotplugPorts& ports, std::map<uint32_t, uint32_t> controllers = {})
      : qmp_(qmp), ports_(ports), controller_ports_(std::move(controllers)) {}

  absl::StatusOr<std::string> AddController(uint32_t index) override;
  absl::Status AddDisk(uint32_t controller, uint32_t lun, const DiskFile& file) override;
  absl::Status RemoveDisk(uint32_t controller, uint32_t lun) override;
  absl::Status GrowDisk(uint32_t controller, uint32_t lun, uint64_t bytes) override;

 private:
  QmpClient& qmp_;
  HotplugPorts& ports_;
  Mutex mutex_;
  std::map<uint32_t, uint32_t> controller_ports_ GUARDED_BY(mutex_);  // a controller is there, or may be
};

}  // namespace lamina::vmm
