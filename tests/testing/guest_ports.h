// For programs that stand in a guest for its agent, or beside it: statically linked, without our libraries.
#pragma once

#include <string>

namespace lamina::testing {

// The boot's modules, as the guest image lists them.
void LoadBootModules();
// The name of the virtio-serial port whose device is /dev/<device>; empty: there is none.
std::string PortName(const std::string& device);
// The port of that name, once the kernel shows it.
int OpenPort(const std::string& name);
// All of it, unless the peer is gone.
void WriteAll(int fd, const std::string& bytes);
// Always the same.
std::string Noise(size_t size);

}  // namespace lamina::testing
