#include "guest/agent/device_mapper.h"

#include <gtest/gtest.h>

namespace lamina::guest {
namespace {

TEST(DeviceMapper, ARegionBecomesALinearTableInSectors) {
  const auto mapping = PlanLinear("pmem0", 2097152, 1048576);
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  EXPECT_EQ(mapping->name, "dm-linear-pmem0-2097152-1048576");
  EXPECT_EQ(mapping->table, "0 2048 linear /dev/pmem0 4096");
}

TEST(DeviceMapper, RegionsAndDevicesThatCannotBeAreRefused) {
  EXPECT_FALSE(PlanLinear("pmem0", 0, 0).ok());
  EXPECT_FALSE(PlanLinear("pmem0", 512, 4096).ok());
  EXPECT_FALSE(PlanLinear("pmem0", 0, 4097).ok());
  EXPECT_FALSE(PlanLinear("pmem0", ~0ULL - 4095, 8192).ok());
  EXPECT_FALSE(PlanLinear("pmem", 0, 4096).ok());
  EXPECT_FALSE(PlanLinear("sda", 0, 4096).ok());
  EXPECT_FALSE(PlanLinear("pmem0/../sda", 0, 4096).ok());
}

}  // namespace
}  // namespace lamina::guest
