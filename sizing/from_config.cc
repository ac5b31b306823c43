#include "sizing/from_config.h"

namespace lamina::sizing {

PlanInput PlanInputFrom(const Config& config, uint32_t host_vcpus, uint64_t host_memory_bytes) {
  const Config::Sizing& sizing = config.sizing;
  PlanInput input;
  input.overhead_nano_cpus = sizing.overhead_nano_cpus;
  input.overhead_memory_bytes = sizing.overhead_memory_bytes;
  input.default_nano_cpus = sizing.default_nano_cpus;
  input.default_memory_bytes = sizing.default_memory_bytes;
  input.min_memory_bytes = sizing.min_memory_bytes;
  input.max_vcpus = sizing.max_vcpus != 0 ? sizing.max_vcpus : host_vcpus;
  input.max_memory_bytes = sizing.max_memory_bytes != 0 ? sizing.max_memory_bytes : host_memory_bytes;
  return input;
}

}  // namespace lamina::sizing
