// PlanVm against a simple model: everything in units of one CPU over a common multiple of all periods.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "base/status.h"
#include "base/units.h"
#include "sizing/plan.h"
#include "tests/testing/status_matchers.h"

namespace lamina::sizing {
namespace {

using Wide = __int128;

constexpr uint64_t kPeriods[] = {1000, 3000, 7000, 10'000, 30'000, 100'000, 1'000'000};
constexpr Wide kUnits = Wide{1024} * 1'953'125 * 21;  // of one CPU: a multiple of 10^9, 1024 and the periods
static_assert(kUnits % 1'000'000'000 == 0 && kUnits % 7000 == 0 && kUnits % 30'000 == 0);

struct Part {
  Wide cpu = -1;  // units; -1: no limit
  int64_t memory = 0;
  uint64_t extra = 0;
};

class Pods {
 public:
  explicit Pods(uint32_t seed) : random_(seed) {}
  uint64_t Below(uint64_t n) { return std::uniform_int_distribution<uint64_t>(0, n - 1)(random_); }

  Limits Make(const std::string& name, Part& part) {
    Limits limits;
    limits.name = name;
    switch (Below(6)) {
      case 0:
        break;  // no limit
      case 1:
        limits.cpu = {0, 100'000, 1 + Below(4096)};  // shares are a request only
        break;
      case 2: {
        const uint64_t shares = Below(2) == 0 ? 1024 * (1 + Below(8)) : 3 + Below(9000);
        limits.cpu = {-1, 100'000, shares};
        part.cpu = kUnits / 1024 * static_cast<Wide>(shares);
        break;
      }
      default: {
        const uint64_t period = kPeriods[Below(std::size(kPeriods))];
        const auto quota = static_cast<int64_t>(1 + Below(4 * period));
        limits.cpu = {quota, period, {}};
        if (period == 100'000 && Below(2) == 0) limits.cpu.period.reset();
        part.cpu = kUnits / static_cast<Wide>(period) * quota;
      }
    }
    if (Below(4) != 0) limits.memory_bytes = part.memory = static_cast<int64_t>(1 + Below(3 * kGiB));
    if (Below(5) == 0) limits.memory_bytes = -1, part.memory = 0;
    if (Below(6) == 0) limits.extra_memory_bytes = part.extra = Below(kGiB);
    return limits;
  }

 private:
  std::mt19937 random_;
};

struct Model {
  Wide cpus = 0;
  uint64_t memory = 0;
};

Model Expect(const PlanInput& input, const Part* pod, const std::vector<Part>& containers) {
  Wide cpu = 0, memory = 0, extra = 0;
  bool cpu_limited = false, memory_limited = false, cpu_free = false, memory_free = false;
  for (const Part& part : containers) {
    cpu_free |= part.cpu < 0;
    memory_free |= part.memory == 0;
    cpu_limited |= part.cpu >= 0;
    memory_limited |= part.memory > 0;
    cpu += std::max<Wide>(part.cpu, 0);
    memory += part.memory;
    extra += part.extra;
  }
  if (pod != nullptr) {
    cpu_limited |= pod->cpu >= 0;
    memory_limited |= pod->memory > 0;
    cpu = std::max(cpu, pod->cpu);
    memory = std::max<Wide>(memory, pod->memory);
    extra = std::max<Wide>(extra, pod->extra);
  }
  if (!cpu_limited || cpu_free) cpu += kUnits / 1'000'000'000 * input.default_nano_cpus;
  if (!memory_limited || memory_free) memory += static_cast<Wide>(input.default_memory_bytes);
  Model model;
  model.cpus = cpu + kUnits / 1'000'000'000 * input.overhead_nano_cpus;
  model.memory = static_cast<uint64_t>(memory + extra) + input.overhead_memory_bytes;
  return model;
}

TEST(PlanModel, ThousandsOfPodsAgreeWithTheModel) {
  for (uint32_t seed = 0; seed < 20'000; ++seed) {
    Pods pods(seed);
    PlanInput input;
    input.overhead_nano_cpus = static_cast<int64_t>(pods.Below(1'500'000'000));
    input.overhead_memory_bytes = pods.Below(256 * kMiB);
    input.default_nano_cpus = static_cast<int64_t>(pods.Below(3'000'000'000));
    input.default_memory_bytes = pods.Below(kGiB);
    input.min_memory_bytes = pods.Below(2) * pods.Below(256 * kMiB);
    std::vector<Part> parts(pods.Below(12));
    for (size_t i = 0; i < parts.size(); ++i)
      input.containers.push_back(pods.Make("container " + std::to_string(i), parts[i]));
    Part pod;
    const bool with_pod = pods.Below(2) == 0;
    if (with_pod) input.pod = pods.Make("sandbox", pod);
    const Model model = Expect(input, with_pod ? &pod : nullptr, parts);
    const auto vcpus = static_cast<uint64_t>(std::max<Wide>(1, (model.cpus + kUnits - 1) / kUnits));
    const uint64_t mib =
        (std::max({model.memory, input.min_memory_bytes, uint64_t{1}}) + 2 * kMiB - 1) / (2 * kMiB) * 2;

    const auto plan = PlanVm(input);
    ASSERT_OK(plan) << "seed " << seed;
    ASSERT_EQ(plan->vcpus, vcpus) << "seed " << seed;
    ASSERT_EQ(plan->memory_mib, mib) << "seed " << seed;
    ASSERT_EQ(plan->memory_exact_bytes, model.memory) << "seed " << seed;
    ASSERT_GE(plan->vcpus_if_rounded_per_container, plan->vcpus) << "seed " << seed;
    ASSERT_GE(plan->reasons.size(), 4u) << "seed " << seed;

    // The order of the containers says nothing.
    PlanInput turned = input;
    std::reverse(turned.containers.begin(), turned.containers.end());
    ASSERT_EQ(PlanVm(turned)->vcpus_exact, plan->vcpus_exact) << "seed " << seed;
    // A maximum of exactly the need is enough, one less names all three numbers.
    input.max_vcpus = plan->vcpus;
    input.max_memory_bytes = plan->memory_bytes();
    ASSERT_OK(PlanVm(input)) << "seed " << seed;
    input.max_memory_bytes -= 1;
    ASSERT_THAT(PlanVm(input), testing::HasStatus(absl::StatusCode::kOutOfRange, "more than the maximum of"));
    if (plan->vcpus > 1) {
      input.max_vcpus -= 1;
      ASSERT_THAT(PlanVm(input),
                  testing::HasStatus(absl::StatusCode::kOutOfRange,
                                     fmt::format("more than the maximum of {}", plan->vcpus - 1)));
    }
  }
}

// In-place resizes: before the change, and changed there and back, the plan is the same.
TEST(PlanModel, AResizeAndItsOppositeCancelOut) {
  for (uint32_t seed = 0; seed < 3000; ++seed) {
    Pods pods(seed);
    PlanInput input;
    Part ignored;
    input.pod = pods.Make("sandbox", ignored);
    const auto plain = PlanVm(input);
    ASSERT_OK(plain);
    const Limits small = pods.Make("web", ignored), large = pods.Make("web", ignored);
    input.resized = {{small, large}, {large, small}};
    const auto both = PlanVm(input);
    ASSERT_OK(both);
    if (plain->limit_nano_cpus > 0) {
      ASSERT_EQ(plain->vcpus_exact, both->vcpus_exact) << "seed " << seed;
    }
    if (plain->limit_memory_bytes > 0) {
      ASSERT_EQ(plain->memory_mib, both->memory_mib) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace lamina::sizing
