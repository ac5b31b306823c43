#include "vmm/hypervisor.h"

#include "base/status.h"
#include "vmm/accel.h"
#include "vmm/guest_image.h"
#include "vmm/qemu_vm.h"

namespace lamina::vmm {
namespace {

class QemuHypervisor : public Hypervisor {
 public:
  absl::StatusOr<Accel> ChooseAccel(const Config& config) override {
    RETURN_IF_ERROR(CheckGuestImage(config));
    return vmm::ChooseAccel(config);
  }
  absl::StatusOr<VirtiofsdProcess> StartVirtiofsd(const VirtiofsdOptions& options) override {
    return vmm::StartVirtiofsd(options);
  }
  absl::StatusOr<std::unique_ptr<Vm>> Start(const VmSpec& spec, const StartOptions& options) override {
    return QemuVm::Start(spec, options);
  }
  absl::StatusOr<std::unique_ptr<Vm>> Adopt(const Adoption& adoption) override {
    return QemuVm::Adopt(adoption);
  }
};

}  // namespace

Hypervisor& Hypervisor::Qemu() {
  static QemuHypervisor qemu;
  return qemu;
}

}  // namespace lamina::vmm
