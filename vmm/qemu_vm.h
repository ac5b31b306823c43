// One running QEMU.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "vmm/balloon.h"
#include "vmm/hotplug_ports.h"
#include "vmm/hypervisor.h"
#include "vmm/process_log.h"
#include "vmm/qemu_devices.h"
#include "vmm/qemu_scsi.h"
#include "vmm/qmp_client.h"
#include "vmm/resize.h"
#include "vmm/vm.h"

namespace lamina::vmm {

class QemuVm : public Vm {
 public:
  // As Hypervisor::Start.
  static absl::StatusOr<std::unique_ptr<Vm>> Start(const VmSpec& spec, const StartOptions& options);
  // As Hypervisor::Adopt.
  static absl::StatusOr<std::unique_ptr<Vm>> Adopt(const Adoption& adoption);

  pid_t pid() const override { return pid_; }
  uint64_t start_time() const override { return start_time_; }
  absl::StatusOr<std::string> AttachArena(const ArenaDevice& arena, uint64_t end) override;
  size_t free_ports() const override { return ports_->free(); }
  std::vector<ArenaDevice> arenas() const override;
  ScsiDisks& scsi() override { return *scsi_; }
  Resizer& resizer() override { return *resizer_; }
  Balloon& balloon() override { return *balloon_; }
  absl::Status Alive() const override;
  bool WaitExit(int helper) override;
  absl::Status Kill(std::chrono::milliseconds timeout) override;

 private:
  explicit QemuVm(std::string runtime_dir) : runtime_dir_(std::move(runtime_dir)) {}
  std::vector<std::string> Logs() const;
  absl::Status KeepLogs();
  void SetUp(uint64_t boot_memory_bytes, QemuDevices devices);

  pid_t pid_ = 0;
  uint64_t start_time_ = 0;
  UniqueFd pidfd_;
  const std::string runtime_dir_;
  std::unique_ptr<LogKeeper> log_keeper_;  // until WaitExit keeps the logs
  // Set by Start or Adopt, before anybody else has the object.
  std::unique_ptr<QmpClient> qmp_;
  std::unique_ptr<HotplugPorts> ports_;
  std::unique_ptr<QmpResizer> resizer_;
  std::unique_ptr<QmpBalloon> balloon_;
  std::unique_ptr<QemuScsi> scsi_host_;
  std::unique_ptr<ScsiDisks> scsi_;

  mutable Mutex mutex_;
  std::vector<ArenaWindow> windows_ GUARDED_BY(mutex_);  // in the order of their attaching
};

}  // namespace lamina::vmm
