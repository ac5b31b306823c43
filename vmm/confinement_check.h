// Whether a pod's processes are confined as docs/vmm.md and docs/security.md say.
#pragma once

#include <string>
#include <vector>

#include "base/config.h"
#include "base/process_rights.h"

namespace lamina::vmm {

// What a running QEMU has of the node and should not, in words; empty: nothing. `users`: those that VMs may
// run as. Pure.
std::vector<std::string> QemuExcess(const ProcessRights& rights, const UserRange& users);
// The same of virtiofsd, which is root and has the capabilities that files need (virtiofsd_confinement.h).
std::vector<std::string> VirtiofsdExcess(const ProcessRights& rights);

}  // namespace lamina::vmm
