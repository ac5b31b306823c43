// One running QEMU.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "vmm/hotplug_ports.h"
#include "vmm/hypervisor.h"
#include "vmm/qemu_scsi.h"
#include "vmm/qmp_client.h"
#include "vmm/resize.h"
#include "vmm/vm.h"

namespace lamina::vmm {

class QemuVm : public Vm {
 public:
  // As Hypervisor::Start.
  static absl::StatusOr<std::unique_ptr<Vm>> Start(const VmSpec& spec, const StartOptions& options);

  pid_t pid() const override { return pid_; }
  uint64_t start_time() const override { return start_time_; }
  absl::StatusOr<std::string> AttachArena(const ArenaDevice& arena, uint64_t end) override;
  size_t free_ports() const override { return ports_.free(); }
  std::vector<ArenaDevice> arenas() const override;
  ScsiDisks& scsi() override { return *scsi_; }
  Resizer& resizer() override { return *resizer_; }
  absl::Status Alive() const override;
  bool WaitExit(int helper) override;
  absl::Status Kill(std::chrono::milliseconds timeout) override;

 private:
  struct Window {
    ArenaDevice arena;
    std::string pci_path;
  };
  explicit QemuVm(const VmSpec& spec);
  // Gives how long they are together.
  uint64_t TrimLogs() const;
  void SetUpDevices(const VmSpec& spec, const QemuCommand& command);

  pid_t pid_ = 0;
  uint64_t start_time_ = 0;
  UniqueFd pidfd_;
  const std::string runtime_dir_;
  HotplugPorts ports_;
  // Set by Start, before anybody else has the object.
  std::unique_ptr<QmpClient> qmp_;
  std::unique_ptr<QmpResizer> resizer_;
  std::unique_ptr<QemuScsi> scsi_host_;
  std::unique_ptr<ScsiDisks> scsi_;

  mutable Mutex mutex_;
  std::vector<Window> windows_ GUARDED_BY(mutex_);  // in the order of their attaching
};

}  // namespace lamina::vmm
