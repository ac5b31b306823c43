// Starts a VM's QEMU process: with what it needs of the node as descriptors, and confined.
#pragma once

#include <sys/types.h>

#include "absl/status/statusor.h"
#include "vmm/hypervisor.h"
#include "vmm/qemu_command.h"
#include "vmm/vm_spec.h"

namespace lamina::vmm {

// Returns when the program runs; the caller reaps it. Its sockets listen from then on (docs/vmm.md), which
// says nothing of whether it answers. Of options it takes what the process is started with. Where the node
// does not let it be confined as it should, it is confined less, and a warning says so. NotFound: a file that
// is not there, or nobody at virtiofsd's socket.
absl::StatusOr<pid_t> LaunchQemu(const VmSpec& spec, const QemuCommand& command, const StartOptions& options);

}  // namespace lamina::vmm
