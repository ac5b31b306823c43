#pragma once

#include "absl/status/statusor.h"
#include "base/config.h"
#include "vmm/vm_spec.h"

namespace lamina::vmm {

// What VMs run with. With hypervisor.accel = "auto" a real boot of the guest image is timed under KVM,
// because an openable /dev/kvm says little; the answer is kept in <run_dir>/accel until kernel, initramfs,
// QEMU or the host's boot change. NotFound names a kernel, initramfs or QEMU that is missing, and nothing is
// kept. Callers at the same time wait for one of them.
absl::StatusOr<Accel> ChooseAccel(const Config& config);

}  // namespace lamina::vmm
