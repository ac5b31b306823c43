// What a pod costs its host beside what its containers use in the guest.
#pragma once

#include <cstdint>
#include <string>

#include "proto/agent.pb.h"

namespace lamina::cri {

struct HostProcesses {
  int64_t vmm = 0, virtiofsd = 0;  // pids, 0: none
  uint64_t claim_bytes = 0;        // shown as the limit of the memory
};

// CPU time and memory of the pod's QEMU and virtiofsd, read below `proc`. A process that is not there adds
// nothing.
agent::v1::ContainerStats HostStats(const HostProcesses& processes, const std::string& proc = "/proc");

}  // namespace lamina::cri
