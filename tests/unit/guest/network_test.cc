#include "guest/agent/network.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

TEST(Network, AddressesOfBothVersions) {
  const auto v4 = ParseIp("10.1.2.3/24");
  ASSERT_OK(v4);
  EXPECT_EQ(v4->family, AF_INET);
  EXPECT_EQ(v4->bytes, (std::vector<uint8_t>{10, 1, 2, 3}));
  EXPECT_EQ(v4->prefix, 24);
  EXPECT_EQ(ParseIp("10.1.2.3")->prefix, 32);
  const auto v6 = ParseIp("fd00::1/64");
  ASSERT_OK(v6);
  EXPECT_EQ(v6->family, AF_INET6);
  EXPECT_EQ(v6->bytes.size(), 16u);
  for (const char* bad :
       {"", "10.1.2", "10.1.2.3/33", "10.1.2.3/", "10.1.2.3/-1", "fd00::1/129", "x", "10.1.2.3 "}) {
    EXPECT_NOT_OK(ParseIp(bad)) << bad;
  }
}

TEST(Network, Macs) {
  EXPECT_EQ(*ParseMac("02:42:0a:01:FF:03"), (std::vector<uint8_t>{2, 0x42, 0x0a, 1, 0xff, 3}));
  for (const char* bad :
       {"", "02:42:0a:01:02", "02-42-0a-01-02-03", "02:42:0a:01:02:0g", "02:42:0a:01:02:03:04"}) {
    EXPECT_NOT_OK(ParseMac(bad)) << bad;
  }
}

TEST(Network, InterfaceNames) {
  EXPECT_OK(CheckInterfaceName("eth0"));
  for (const char* bad : {"", ".", "..", "a/b", "a b", "sixteencharacter", "a:b"}) {
    EXPECT_NOT_OK(CheckInterfaceName(bad)) << bad;
  }
}

}  // namespace
}  // namespace lamina::guest
