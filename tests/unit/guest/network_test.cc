#include "guest/agent/network.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

namespace lamina::guest {
namespace {

TEST(Network, AddressesOfBothVersions) {
  const auto v4 = ParseIp("10.1.2.3/24");
  ASSERT_TRUE(v4.ok());
  EXPECT_EQ(v4->family, AF_INET);
  EXPECT_EQ(v4->bytes, (std::vector<uint8_t>{10, 1, 2, 3}));
  EXPECT_EQ(v4->prefix, 24);
  EXPECT_EQ(ParseIp("10.1.2.3")->prefix, 32);
  const auto v6 = ParseIp("fd00::1/64");
  ASSERT_TRUE(v6.ok());
  EXPECT_EQ(v6->family, AF_INET6);
  EXPECT_EQ(v6->bytes.size(), 16u);
  for (const char* bad :
       {"", "10.1.2", "10.1.2.3/33", "10.1.2.3/", "10.1.2.3/-1", "fd00::1/129", "x", "10.1.2.3 "}) {
    EXPECT_FALSE(ParseIp(bad).ok()) << bad;
  }
}

TEST(Network, Macs) {
  EXPECT_EQ(*ParseMac("02:42:0a:01:FF:03"), (std::vector<uint8_t>{2, 0x42, 0x0a, 1, 0xff, 3}));
  for (const char* bad :
       {"", "02:42:0a:01:02", "02-42-0a-01-02-03", "02:42:0a:01:02:0g", "02:42:0a:01:02:03:04"}) {
    EXPECT_FALSE(ParseMac(bad).ok()) << bad;
  }
}

TEST(Network, InterfaceNames) {
  EXPECT_TRUE(CheckInterfaceName("eth0").ok());
  for (const char* bad : {"", ".", "..", "a/b", "a b", "sixteencharacter", "a:b"}) {
    EXPECT_FALSE(CheckInterfaceName(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace lamina::guest
