// The command line that a machine's QEMU is started with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "vmm/vm_spec.h"

namespace lamina::vmm {

// What QEMU is started with, by the numbers that it has there: the tap, listening sockets, the connection to
// virtiofsd, the boot arenas one after the other.
inline constexpr int kTapFd = 3, kQmpFd = 4, kRpcFd = 5, kStdioFd = 6, kVirtiofsFd = 7, kFirstArenaFd = 8;

// Where the guest finds a device: slots from the root bus, "10.3/00.0" (bus slot and function, hexadecimal).
struct QemuCommand {
  std::vector<std::string> argv;
  std::vector<std::string> arena_pci_paths;  // of the boot arenas, in order
};

// Pure. docs/vmm.md explains the machine.
QemuCommand BuildQemuCommand(const VmSpec& spec);

// PCI path of root port `index`'s only slot, and the port's id in QEMU.
std::string HotplugPciPath(uint32_t index);
std::string HotplugPortId(uint32_t index);

}  // namespace lamina::vmm
