#include "sizing/annotations.h"

#include <gtest/gtest.h>

#include "base/units.h"
#include "tests/testing/status_matchers.h"

namespace lamina::sizing {
namespace {

using testing::HasStatus;
constexpr char kQuota[] = "io.kubernetes.cri.sandbox-cpu-quota";
constexpr char kMemory[] = "io.kubernetes.cri.sandbox-memory";

TEST(Annotations, NoneMeansNoLimits) {
  const auto limits = LimitsFromAnnotations({});
  ASSERT_OK(limits);
  EXPECT_FALSE(limits->cpu.quota.has_value());
  EXPECT_FALSE(limits->memory_bytes.has_value());
}

TEST(Annotations, AreReadAsContainerdWritesThem) {
  const auto limits = LimitsFromAnnotations({{kQuota, "25000"},
                                             {"io.kubernetes.cri.sandbox-cpu-period", "100000"},
                                             {"io.kubernetes.cri.sandbox-cpu-shares", "256"},
                                             {kMemory, "134217728"}});
  ASSERT_OK(limits);
  EXPECT_EQ(limits->cpu.quota, 25000);
  EXPECT_EQ(limits->cpu.period, 100000u);
  EXPECT_EQ(limits->cpu.shares, 256u);
  EXPECT_EQ(limits->memory_bytes, 134217728);
}

TEST(Annotations, BadOnesAreNamedWithTheirValue) {
  for (const char* bad : {"abc", "1.5", "12x", " 1", "99999999999999999999", "-"}) {
    EXPECT_THAT(LimitsFromAnnotations({{kQuota, bad}}), HasStatus(absl::StatusCode::kInvalidArgument, kQuota))
        << bad;
    EXPECT_THAT(LimitsFromAnnotations({{kMemory, bad}}), HasStatus(absl::StatusCode::kInvalidArgument, bad));
  }
  EXPECT_THAT(LimitsFromAnnotations({{kQuota, "-2"}}), HasStatus(absl::StatusCode::kInvalidArgument, "-2"));
  EXPECT_THAT(LimitsFromAnnotations({{kMemory, "-1"}}),
              HasStatus(absl::StatusCode::kInvalidArgument, "negative"));
  EXPECT_OK(LimitsFromAnnotations({{kQuota, "-1"}}));
  EXPECT_OK(LimitsFromAnnotations({{kQuota, ""}}));
}

TEST(CriResources, ZeroIsNotSetAndTheRestCounts) {
  const auto none = LimitsFromCri({}, "sandbox");
  ASSERT_OK(none);
  EXPECT_EQ(*none, (Limits{"sandbox", {}, {}, 0}));
  const auto all = LimitsFromCri({100'000, 25'000, 256, 1 << 20, {2 << 20, 1 << 30}}, "sandbox");
  ASSERT_OK(all);
  EXPECT_EQ(all->cpu, (CpuLimit{25'000, 100'000, 256}));
  EXPECT_EQ(all->memory_bytes, 1 << 20);
  EXPECT_EQ(all->extra_memory_bytes, (2ULL << 20) + (1ULL << 30));
  EXPECT_THAT(LimitsFromCri({0, -2, 0, 0, {}}, "overhead"),
              HasStatus(absl::StatusCode::kInvalidArgument, "overhead: cpu_quota -2"));
  EXPECT_THAT(LimitsFromCri({0, 0, 0, -7, {}}, "overhead"),
              HasStatus(absl::StatusCode::kInvalidArgument, "memory_limit_in_bytes -7"));
  EXPECT_THAT(LimitsFromCri({0, 0, 0, 0, {INT64_MAX, 1}}, "sandbox"),
              HasStatus(absl::StatusCode::kOutOfRange, "huge pages"));
}

TEST(Overrides, OnlyWhatTheNodeAllows) {
  PlanInput input;
  EXPECT_OK(ApplyOverrides({{"other.io/x", "1"}}, {}, input));
  EXPECT_THAT(ApplyOverrides({{"lamina.io/default-memory", "8GiB"}}, {}, input),
              HasStatus(absl::StatusCode::kPermissionDenied, "lamina.io/default-memory"));
  EXPECT_OK(ApplyOverrides({{"lamina.io/default-memory", "8GiB"}, {"lamina.io/overhead-cpu", "100m"}},
                           {"lamina.io/default-memory", "lamina.io/overhead-cpu"}, input));
  EXPECT_EQ(input.default_memory_bytes, 8 * kGiB);
  EXPECT_EQ(input.overhead_nano_cpus, 100'000'000);
  EXPECT_THAT(ApplyOverrides({{"lamina.io/default-memory", "lots"}}, {"lamina.io/default-memory"}, input),
              HasStatus(absl::StatusCode::kInvalidArgument, "lots"));
  EXPECT_THAT(ApplyOverrides({{"lamina.io/x", "1"}}, {"lamina.io/x"}, input),
              HasStatus(absl::StatusCode::kInvalidArgument, "unknown"));
}

TEST(Overrides, NumaNodes) {
  const auto apply = [](const std::string& value, PlanInput& input) {
    return ApplyOverrides({{"lamina.io/numa-nodes", value}}, {kNumaNodesAnnotation}, input);
  };
  PlanInput input;
  EXPECT_THAT(ApplyOverrides({{"lamina.io/numa-nodes", "0"}}, {}, input),
              HasStatus(absl::StatusCode::kPermissionDenied, "lamina.io/numa-nodes"));
  EXPECT_OK(apply("0-1", input));
  EXPECT_EQ(input.numa_nodes, (NumaNodes{0, 1}));
  for (const char* bad : {"", "0,0", "zero", "1-0"}) {
    EXPECT_THAT(apply(bad, input),
                HasStatus(absl::StatusCode::kInvalidArgument,
                          std::string("annotation lamina.io/numa-nodes: \"") + bad + "\""));
  }
}

}  // namespace
}  // namespace lamina::sizing
