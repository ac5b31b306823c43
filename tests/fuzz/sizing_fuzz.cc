// Annotations and limits: a plan that holds its promises, or an error.
#include <fuzzer/FuzzedDataProvider.h>

#include "sizing/annotations.h"
#include "sizing/plan.h"
#include "tests/fuzz/check.h"

using namespace lamina::sizing;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzedDataProvider input(data, size);
  static const char* const keys[] = {"io.kubernetes.cri.sandbox-cpu-quota",
                                     "io.kubernetes.cri.sandbox-cpu-period",
                                     "io.kubernetes.cri.sandbox-cpu-shares",
                                     "io.kubernetes.cri.sandbox-memory",
                                     "lamina.io/overhead-cpu",
                                     "lamina.io/overhead-memory",
                                     "lamina.io/default-cpu",
                                     "lamina.io/default-memory",
                                     "lamina.io/numa-nodes",
                                     "lamina.io/unknown"};
  Annotations annotations;
  for (const char* key : keys) {
    if (!input.ConsumeBool()) continue;
    annotations[key] = input.ConsumeBool() ? std::to_string(input.ConsumeIntegral<int64_t>())
                                           : input.ConsumeRandomLengthString(24);
  }
  PlanInput plan;
  plan.overhead_nano_cpus = input.ConsumeIntegralInRange<int64_t>(0, INT64_MAX);
  plan.overhead_memory_bytes = input.ConsumeIntegral<uint64_t>();
  plan.default_nano_cpus = input.ConsumeIntegralInRange<int64_t>(0, INT64_MAX);
  plan.default_memory_bytes = input.ConsumeIntegral<uint64_t>();
  plan.max_vcpus = input.ConsumeIntegral<uint32_t>();
  plan.max_memory_bytes = input.ConsumeIntegral<uint64_t>();
  const std::vector<std::string> allowed(keys, keys + std::size(keys));
  if (!ApplyOverrides(annotations, allowed, plan).ok()) return 0;
  if (input.ConsumeBool()) {
    auto limits = LimitsFromAnnotations(annotations);
    if (!limits.ok()) return 0;
    plan.pod = *limits;
  }
  for (int i = input.ConsumeIntegralInRange(0, 4); i > 0; --i) {
    Limits limits;
    if (input.ConsumeBool()) limits.cpu.quota = input.ConsumeIntegral<int64_t>();
    if (input.ConsumeBool()) limits.cpu.period = input.ConsumeIntegral<uint64_t>();
    if (input.ConsumeBool()) limits.cpu.shares = input.ConsumeIntegral<uint64_t>();
    if (input.ConsumeBool()) limits.memory_bytes = input.ConsumeIntegral<int64_t>();
    limits.extra_memory_bytes = input.ConsumeIntegral<uint64_t>();
    plan.containers.push_back(limits);
  }
  const auto vm = PlanVm(plan);
  if (!vm.ok()) return 0;
  FUZZ_CHECK(vm->vcpus >= 1);
  FUZZ_CHECK(plan.max_vcpus == 0 || vm->vcpus <= plan.max_vcpus);
  FUZZ_CHECK(vm->memory_mib % 2 == 0 && vm->memory_bytes() >= vm->memory_exact_bytes);
  // Rounded up by less than one step; a pod of no memory gets one.
  FUZZ_CHECK(vm->memory_bytes() - vm->memory_exact_bytes < (2U << 20) || vm->memory_exact_bytes == 0);
  FUZZ_CHECK(plan.max_memory_bytes == 0 || vm->memory_exact_bytes <= plan.max_memory_bytes);
  FUZZ_CHECK(!vm->reasons.empty());
  return 0;
}
