#include "sizing/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "base/units.h"
#include "tests/testing/status_matchers.h"

namespace lamina::sizing {
namespace {

using ::testing::Contains;
using testing::HasStatus;
using ::testing::HasSubstr;

constexpr int64_t kMilli = 1'000'000;

PlanInput Input(int64_t overhead_milli, uint64_t overhead_memory = 64 * kMiB) {
  PlanInput input;
  input.overhead_nano_cpus = overhead_milli * kMilli;
  input.overhead_memory_bytes = overhead_memory;
  input.default_memory_bytes = 256 * kMiB;
  return input;
}

Limits Container(int64_t milli, int64_t memory = 0) {
  Limits limits;
  limits.name = "container";
  if (milli > 0) limits.cpu = {milli * 100, 100'000, {}};
  if (memory > 0) limits.memory_bytes = memory;
  return limits;
}

VmPlan Plan(const PlanInput& input) {
  const auto plan = PlanVm(input);
  EXPECT_OK(plan);
  return plan.value_or(VmPlan());
}

TEST(Plan, OverheadAndLimitAreRoundedUpOnce) {
  PlanInput input = Input(500);
  input.pod = Container(250, 256 << 20);
  const VmPlan plan = Plan(input);
  EXPECT_EQ(plan.vcpus, 1u);
  EXPECT_EQ(plan.vcpus_exact, "0.75");
  EXPECT_EQ(plan.vcpus_if_rounded_per_container, 2u);
  EXPECT_EQ(plan.memory_mib, 320u);
  EXPECT_THAT(plan.reasons, Contains(HasSubstr("0.75 exactly")));
}

struct FloatTrap {
  int64_t overhead, each;
  int count;
  uint32_t vcpus;
};

TEST(Plan, SumsWhereFloatingPointGoesWrong) {
  for (const FloatTrap& trap :
       {FloatTrap{200, 100, 8, 1}, {250, 50, 15, 1}, {200, 350, 8, 3}, {0, 100, 10, 1}, {0, 100, 11, 2}}) {
    PlanInput input = Input(trap.overhead);
    for (int i = 0; i < trap.count; ++i) input.containers.push_back(Container(trap.each));
    EXPECT_EQ(Plan(input).vcpus, trap.vcpus) << trap.overhead << "+" << trap.count << "x" << trap.each;
  }
}

TEST(Plan, AgreesWithIntegersForAllMilliCpus) {
  std::mt19937 random(11);
  for (int round = 0; round < 3000; ++round) {
    const int64_t overhead = random() % 1000;
    PlanInput input = Input(overhead);
    int64_t sum = overhead;
    for (unsigned i = 0, n = 1 + random() % 20; i < n; ++i) {
      const int64_t milli = 1 + random() % 3000;
      sum += milli;
      input.containers.push_back(Container(milli));
    }
    EXPECT_EQ(Plan(input).vcpus, static_cast<uint32_t>((sum + 999) / 1000));
  }
}

TEST(Plan, EachDimensionFallsBackByItself) {
  PlanInput cpu_only = Input(250);
  cpu_only.pod = Container(1500);
  EXPECT_EQ(Plan(cpu_only).vcpus, 2u);
  EXPECT_EQ(Plan(cpu_only).memory_mib, 320u) << "default plus overhead, never the bare overhead";
  PlanInput memory_only = Input(250);
  memory_only.pod = Container(0, 100 << 20);
  EXPECT_EQ(Plan(memory_only).vcpus, 2u) << "default 1 plus 0.25";
  EXPECT_EQ(Plan(memory_only).memory_mib, 164u);
  EXPECT_EQ(Plan(Input(0)).vcpus, 1u);
}

TEST(Plan, MemoryIsRoundedUpToTwoMiB) {
  PlanInput input = Input(0, 0);
  input.pod = Container(0, (100 << 20) + 1);
  EXPECT_EQ(Plan(input).memory_mib, 102u);
  input.pod = Container(0, 101 << 20);
  EXPECT_EQ(Plan(input).memory_mib, 102u);
  input.pod = Container(0, 1);
  EXPECT_EQ(Plan(input).memory_mib, 2u);
}

TEST(Plan, StaticCpuManagerCountsShares) {
  PlanInput input = Input(500);
  input.pod = Limits{"sandbox", {-1, 100'000, 2048}, {}, 0};
  EXPECT_EQ(Plan(input).vcpus, 3u);
  input.pod->cpu.shares = 2;  // BestEffort
  EXPECT_EQ(Plan(input).vcpus, 2u) << "no limit: the default";
}

TEST(Plan, QuotaZeroIsNoLimitAndAPeriodDefaults) {
  PlanInput input = Input(0);
  input.pod = Limits{"sandbox", {0, 100'000, 1024}, {}, 0};
  EXPECT_EQ(Plan(input).vcpus, 1u);
  input.pod = Limits{"sandbox", {150'000, {}, {}}, {}, 0};
  EXPECT_EQ(Plan(input).vcpus, 2u);
  input.pod = Limits{"sandbox", {10'000, 30'000, {}}, {}, 0};
  EXPECT_EQ(Plan(input).vcpus_exact, "1/3");
}

TEST(Plan, AnUnlimitedContainerIsNotSqueezed) {
  PlanInput input = Input(0, 0);
  input.containers = {Container(500, 64 << 20), Container(0)};
  const VmPlan plan = Plan(input);
  EXPECT_EQ(plan.vcpus, 2u);
  EXPECT_EQ(plan.memory_mib, 320u);
  EXPECT_THAT(plan.reasons, Contains(HasSubstr("containers without a limit")));
}

TEST(Plan, HugepagesAndVolumesCount) {
  PlanInput input = Input(0, 0);
  Limits limits = Container(0, 64 << 20);
  limits.extra_memory_bytes = 10 << 20;
  input.containers = {limits};
  EXPECT_EQ(Plan(input).memory_mib, 74u);
}

TEST(Plan, AMaximumExceededNamesLimitOverheadAndMaximum) {
  PlanInput input = Input(500);
  input.max_vcpus = 4;
  input.pod = Container(4000);
  EXPECT_THAT(PlanVm(input),
              HasStatus(absl::StatusCode::kOutOfRange,
                        "needs 5 vCPUs (limit 4 + overhead 0.5 = 4.5), more than the maximum of 4"));
  input.pod = Container(3500);
  EXPECT_OK(PlanVm(input));
  input.max_memory_bytes = 128 * kMiB;
  input.pod = Container(100, 100 << 20);
  EXPECT_THAT(PlanVm(input), HasStatus(absl::StatusCode::kOutOfRange,
                                       "limit 100MiB + overhead 64MiB), more than the maximum of 128MiB"));
}

TEST(Plan, AMinimumRaisesWithAReason) {
  PlanInput input = Input(0, 32 * kMiB);
  input.min_memory_bytes = 96 * kMiB;
  input.pod = Container(100, 16 << 20);
  const VmPlan plan = Plan(input);
  EXPECT_EQ(plan.memory_mib, 96u);
  EXPECT_EQ(plan.memory_exact_bytes, 48 * kMiB);
  EXPECT_THAT(plan.reasons, Contains(HasSubstr("raised to the minimum of 96MiB")));
}

TEST(Plan, TheLargerOfSumAndContainersCounts) {
  PlanInput input = Input(0, 0);
  input.pod = Container(1000, 64 << 20);
  input.containers = {Container(250, 32 << 20)};
  EXPECT_EQ(Plan(input).vcpus, 1u);
  EXPECT_EQ(Plan(input).memory_mib, 64u);
  EXPECT_EQ(Plan(input).vcpus_if_rounded_per_container, 2u) << "the container, and what is to come";
  input.containers.push_back(Container(1000, 64 << 20));
  const VmPlan plan = Plan(input);
  EXPECT_EQ(plan.vcpus_exact, "1.25");
  EXPECT_EQ(plan.memory_mib, 96u);
  EXPECT_THAT(plan.reasons, Contains(HasSubstr("more than the pod's sum")));
}

TEST(CgroupMisfit, SpeaksWithNumbersOrNotAtAll) {
  PlanInput input = Input(250, 96 * kMiB);
  input.pod = Container(500, 160 << 20);
  const VmPlan plan = Plan(input);
  EXPECT_EQ(CgroupMisfit("pod cgroup /kubepods/x", {352 * kMiB, 750'000'000}, plan, 96 * kMiB), "");
  EXPECT_EQ(CgroupMisfit("pod cgroup /kubepods/x", {}, plan, 96 * kMiB), "");
  EXPECT_THAT(CgroupMisfit("pod cgroup /kubepods/x", {320 * kMiB, {}}, plan, 96 * kMiB),
              ::testing::AllOf(HasSubstr("needs 352MiB (guest 256MiB = limits and defaults 160MiB + overhead "
                                         "96MiB; host side 96MiB)"),
                               HasSubstr("/kubepods/x allows 320MiB: 32MiB are missing")));
  EXPECT_EQ(CgroupMisfit("pod cgroup /kubepods/x", {{}, 500'000'000}, plan, 96 * kMiB),
            "the VM of 1 vCPUs needs 0.75 CPUs (limits and defaults 0.5 + overhead 0.25), but pod cgroup "
            "/kubepods/x allows 0.5: it would be throttled; raise overhead.podFixed of the RuntimeClass by "
            "0.25, or "
            "lower sizing.overhead_cpu");
  EXPECT_THAT(CgroupMisfit("x", {0, 0}, plan, 0),
              ::testing::AllOf(HasSubstr("are missing"), HasSubstr("; the VM of 1 vCPUs needs")));
}

// podFixed is the overheads' sum: it fits every pod, whatever its limits, and one page less does not.
TEST(CgroupMisfit, RoundingIsNotHeldAgainstAPod) {
  PlanInput input = Input(250, 96 * kMiB);
  for (const int64_t limit : {int64_t{64} << 20, (int64_t{65} << 20) + 1, (int64_t{67} << 20) - 4096}) {
    input.pod = Container(100, limit);
    const VmPlan plan = Plan(input);
    const uint64_t podfixed = 192 * kMiB, cgroup = static_cast<uint64_t>(limit) + podfixed;
    EXPECT_EQ(CgroupMisfit("x", {cgroup, 350'000'000}, plan, 96 * kMiB), "") << limit;
    EXPECT_EQ(CgroupMisfit("x", {cgroup / 4096 * 4096, {}}, plan, 96 * kMiB), "") << limit;
    EXPECT_NE(CgroupMisfit("x", {cgroup - 4096, {}}, plan, 96 * kMiB), "") << limit;
    EXPECT_NE(CgroupMisfit("x", {{}, 349'999'999}, plan, 96 * kMiB), "") << limit;
  }
  input.min_memory_bytes = 512 * kMiB;  // what the guest gets beyond its sum is no rounding
  EXPECT_THAT(CgroupMisfit("x", {512 * kMiB, {}}, Plan(input), 96 * kMiB),
              HasSubstr("raised to the minimum"));
}

TEST(Plan, BadNumbersAreNamed) {
  PlanInput input = Input(0);
  input.pod = Limits{"sandbox", {-2, 100'000, {}}, {}, 0};
  EXPECT_THAT(PlanVm(input), HasStatus(absl::StatusCode::kInvalidArgument, "sandbox: CPU quota -2"));
  input.pod = Limits{"sandbox", {}, INT64_MAX, 0};
  EXPECT_THAT(PlanVm(input), HasStatus(absl::StatusCode::kOutOfRange, "too large"));
  input.pod = Limits{"sandbox", {INT64_MAX, 1, {}}, {}, 0};
  EXPECT_NOT_OK(PlanVm(input));
}

TEST(Plan, SaysWhereTheMemoryLies) {
  PlanInput input;
  input.numa_nodes = {1};
  EXPECT_THAT(PlanVm(input)->reasons, Contains("all of it from NUMA node 1"));
  input.numa_nodes = {0, 1, 3};
  EXPECT_THAT(PlanVm(input)->reasons, Contains("from NUMA nodes 0-1,3, as much from each"));
}

}  // namespace
}  // namespace lamina::sizing
