#pragma once

#include <cstdint>

#include "base/config.h"
#include "sizing/plan.h"

namespace lamina::sizing {

// What the config says for every pod of a node. Where it sets no maximum the host's CPUs and memory are it; 0
// for either: none.
PlanInput PlanInputFrom(const Config& config, uint32_t host_vcpus, uint64_t host_memory_bytes);

}  // namespace lamina::sizing
