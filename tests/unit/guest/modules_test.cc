#include "guest/agent/modules.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>

#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

TEST(Modules, OrderKeepsGroupsAndSequence) {
  const auto order = ParseModuleOrder("# comment\n\nboot virtio_ring\nboot virtio\nvirtio-27 nd_pmem\n");
  ASSERT_OK(order);
  ASSERT_EQ(order->size(), 3u);
  EXPECT_EQ((*order)[1].group, "boot");
  EXPECT_EQ((*order)[1].name, "virtio");
  EXPECT_EQ((*order)[2].group, "virtio-27");
}

TEST(Modules, ABadLineIsNamed) {
  for (const char* bad : {"boot\n", "boot \n", " virtio\n", "boot ../evil\n", "boot a b\n"}) {
    const auto order = ParseModuleOrder(std::string("boot virtio\n") + bad);
    ASSERT_NOT_OK(order) << bad;
    EXPECT_NE(std::string(order.status().message()).find("line 2"), std::string::npos) << order.status();
  }
}

TEST(Modules, VirtioDevicesNameTheirGroup) {
  EXPECT_EQ(ModuleGroupOfModalias("virtio:d0000001Bv00001AF4"), "virtio-27");
  EXPECT_EQ(ModuleGroupOfModalias("virtio:d00000001v00001AF4"), "virtio-1");
  EXPECT_EQ(ModuleGroupOfModalias("pci:v00001AF4"), "");
  EXPECT_EQ(ModuleGroupOfModalias("virtio:d0000"), "");
  EXPECT_EQ(ModuleGroupOfModalias("virtio:dxxxxxxxxv0"), "");
}

TEST(Modules, AnEmptyOrderCountsAsLoaded) {
  ModuleLoader loader("/nonexistent", {});
  EXPECT_OK(loader.Load("boot"));
}

TEST(Modules, AMissingFileIsNotFoundAndNamed) {
  ModuleLoader loader("/nonexistent", {{"boot", "virtio"}});
  const absl::Status status = loader.Load("boot");
  EXPECT_THAT(status, testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_NE(std::string(status.message()).find("/nonexistent/virtio.ko"), std::string::npos);
  EXPECT_OK(loader.Load("other"));
}

}  // namespace
}  // namespace lamina::guest
