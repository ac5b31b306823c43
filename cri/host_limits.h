// What the sandbox's cgroup lets its processes have: a guest that takes memory it was not given, or a QEMU
// that leaks, meets these limits and not the node.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "vmm/vm_spec.h"

namespace lamina::cri {

// Bytes that a pod with this claim may use: the claim, and a slack for what grows beside the guest's memory
// (page tables, the kernel's own for descriptors and sockets; translated code where the guest is emulated).
uint64_t MemoryLimit(vmm::Accel accel, uint64_t claim_bytes);

// Threads of QEMU and virtiofsd together.
uint64_t TaskLimit(uint32_t max_vcpus);

// The three take a sandbox's cgroup directories (HostCgroup::dirs), of v1 or v2.

// Of memory and swap together. NotFound: no controller limits memory there. Other errors name file and value;
// a limit below what is in use is refused by v1 and enforced by v2.
absl::Status LimitMemory(const std::vector<std::string>& dirs, uint64_t bytes);
// OK too where no controller counts tasks.
absl::Status LimitTasks(const std::vector<std::string>& dirs, uint64_t tasks);
// How many processes the kernel has ended there for want of memory. 0 where it does not tell.
uint64_t OomKills(const std::vector<std::string>& dirs);

}  // namespace lamina::cri
