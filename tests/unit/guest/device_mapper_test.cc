#include "guest/agent/device_mapper.h"

#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

TEST(DeviceMapper, ARegionBecomesALinearTableInSectors) {
  const auto mapping = PlanLinear("pmem0", 2097152, 1048576);
  ASSERT_OK(mapping);
  EXPECT_EQ(mapping->name, "dm-linear-pmem0-2097152-1048576");
  EXPECT_EQ(mapping->sectors, 2048u);
  EXPECT_EQ(mapping->target, "linear");
  EXPECT_EQ(mapping->parameters, "/dev/pmem0 4096");
}

TEST(DeviceMapper, RegionsAndDevicesThatCannotBeAreRefused) {
  EXPECT_NOT_OK(PlanLinear("pmem0", 0, 0));
  EXPECT_NOT_OK(PlanLinear("pmem0", 512, 4096));
  EXPECT_NOT_OK(PlanLinear("pmem0", 0, 4097));
  EXPECT_NOT_OK(PlanLinear("pmem0", ~0ULL - 4095, 8192));
  EXPECT_NOT_OK(PlanLinear("pmem", 0, 4096));
  EXPECT_NOT_OK(PlanLinear("sda", 0, 4096));
  EXPECT_NOT_OK(PlanLinear("pmem0/../sda", 0, 4096));
}

TEST(DeviceMapper, ADiskAndItsTreeBecomeAVerityTable) {
  const std::string root(64, 'a');
  const auto mapping = PlanVerity("sdb", "sdaa", 12288, root);
  ASSERT_OK(mapping);
  EXPECT_EQ(mapping->name, "dm-verity-sdb");
  EXPECT_EQ(mapping->sectors, 24u);
  EXPECT_EQ(mapping->target, "verity");
  EXPECT_EQ(mapping->parameters, "1 /dev/sdb /dev/sdaa 4096 4096 3 0 sha256 " + root + " -");
}

TEST(DeviceMapper, DisksAndRootsThatCannotBeAreRefused) {
  const std::string root(64, '0');
  EXPECT_OK(PlanVerity("sda", "sdb", 4096, root));
  EXPECT_NOT_OK(PlanVerity("sda", "sda", 4096, root));
  EXPECT_NOT_OK(PlanVerity("sd", "sdb", 4096, root));
  EXPECT_NOT_OK(PlanVerity("sda", "pmem0", 4096, root));
  EXPECT_NOT_OK(PlanVerity("sda", "sdb 1", 4096, root));
  EXPECT_NOT_OK(PlanVerity("sda", "sdb", 0, root));
  EXPECT_NOT_OK(PlanVerity("sda", "sdb", 4097, root));
  EXPECT_NOT_OK(PlanVerity("sda", "sdb", 4096, root.substr(1)));
  EXPECT_NOT_OK(PlanVerity("sda", "sdb", 4096, root.substr(1) + "G"));
  EXPECT_NOT_OK(PlanVerity("sda", "sdb", 4096, root.substr(1) + " "));
  EXPECT_NOT_OK(PlanVerity("sda", "sdb", 4096, ""));
}

}  // namespace
}  // namespace lamina::guest
