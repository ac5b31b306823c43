#include "sizing/from_config.h"

#include <gtest/gtest.h>

#include "base/units.h"

namespace lamina::sizing {
namespace {

TEST(PlanInputFrom, TakesWhatTheConfigSays) {
  Config config;
  config.sizing.overhead_nano_cpus = 1;
  config.sizing.overhead_memory_bytes = 2;
  config.sizing.default_nano_cpus = 3;
  config.sizing.default_memory_bytes = 4;
  config.sizing.min_memory_bytes = 5;
  config.sizing.max_vcpus = 6;
  config.sizing.max_memory_bytes = 7;
  const PlanInput input = PlanInputFrom(config, 64, 64 * kGiB);
  EXPECT_EQ(input.overhead_nano_cpus, 1);
  EXPECT_EQ(input.overhead_memory_bytes, 2u);
  EXPECT_EQ(input.default_nano_cpus, 3);
  EXPECT_EQ(input.default_memory_bytes, 4u);
  EXPECT_EQ(input.min_memory_bytes, 5u);
  EXPECT_EQ(input.max_vcpus, 6u);
  EXPECT_EQ(input.max_memory_bytes, 7u);
}

TEST(PlanInputFrom, TheHostIsTheMaximumWhereNoneIsSet) {
  const PlanInput input = PlanInputFrom(Config(), 64, 128 * kGiB);
  EXPECT_EQ(input.max_vcpus, 64u);
  EXPECT_EQ(input.max_memory_bytes, 128 * kGiB);
  EXPECT_EQ(PlanInputFrom(Config(), 0, 0).max_vcpus, 0u);  // and none without a host
}

}  // namespace
}  // namespace lamina::sizing
