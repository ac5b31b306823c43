#include "cri/network.h"

#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

using absl::StatusCode;
using ::testing::ElementsAre;
using testing::HasStatus;

constexpr char kLo[] = R"({"ifname":"lo","link_type":"loopback","flags":["LOOPBACK","UP"],"addr_info":[]})";
constexpr char kEth[] = R"({"ifname":"net1","link_type":"ether","flags":["BROADCAST","UP"],"mtu":1450,
  "address":"02:42:0a:01:02:03","addr_info":[
   {"family":"inet","local":"10.1.2.3","prefixlen":24,"scope":"global"},
   {"family":"inet6","local":"fd00::3","prefixlen":64,"scope":"global"},
   {"family":"inet6","local":"fe80::1","prefixlen":64,"scope":"link"},{"local":"broken"},5]})";

TEST(ParseNetwork, TheCnisInterfaceIsTheGuestsEth0) {
  const auto network =
      ParseNetwork(fmt::format("[{},{}]", kLo, kEth),
                   R"([{"dst":"default","gateway":"10.1.2.1","dev":"net1","metric":100},
          {"dst":"10.1.2.0/24","dev":"net1","protocol":"kernel","scope":"link"},
          {"dst":"169.254.1.1","dev":"net1","scope":"link","prefsrc":"10.1.2.3","flags":["onlink"]},
          {"dst":"10.9.0.0/16","gateway":"10.1.2.9","dev":"other0"}, 5, "x"])",
                   R"([{"dst":"default","gateway":"fd00::1","dev":"net1"},{"dst":"fd01::5","dev":"net1"},
          {"type":"multicast","dst":"ff00::/8","dev":"net1"}])");
  ASSERT_OK(network.status());
  EXPECT_TRUE(network->present);
  EXPECT_EQ(network->device, "net1");
  EXPECT_EQ(network->mac, "02:42:0a:01:02:03");
  ASSERT_EQ(network->config.interfaces_size(), 1);
  const auto& eth0 = network->config.interfaces(0);
  EXPECT_EQ(eth0.name(), "eth0");
  EXPECT_EQ(eth0.mtu(), 1450U);
  EXPECT_THAT(eth0.addresses(), ElementsAre("10.1.2.3/24", "fd00::3/64"));
  ASSERT_EQ(network->config.routes_size(), 4);
  const auto& way_out = network->config.routes(0);
  EXPECT_EQ(way_out.destination(), "");
  EXPECT_EQ(way_out.gateway(), "10.1.2.1");
  EXPECT_EQ(way_out.metric(), 100U);
  EXPECT_EQ(way_out.device(), "eth0");
  const auto& link = network->config.routes(1);
  EXPECT_EQ(link.destination(), "169.254.1.1/32");
  EXPECT_EQ(link.source(), "10.1.2.3");
  EXPECT_EQ(link.scope(), 253U);
  EXPECT_TRUE(link.onlink());
  EXPECT_TRUE(network->config.routes(2).ipv6());
  EXPECT_EQ(network->config.routes(3).destination(), "fd01::5/128");
}

TEST(ParseNetwork, WithoutAnInterfaceThereIsNone) {
  for (const std::string& text : {
           std::string(""),
           std::string("[]"),
           fmt::format("[{}]", kLo),
           // Down, a tap of an earlier attempt, or no link at all.
           std::string(R"([{"ifname":"net1","link_type":"ether","flags":["BROADCAST"]}])"),
           fmt::format(R"([{{"ifname":"{}","link_type":"ether","flags":["UP"]}}])", kTapName),
           std::string(R"([5, null, {"ifname":7}, {"link_type":"ether","flags":7}])"),
       }) {
    const auto network = ParseNetwork(text, "", "");
    ASSERT_OK(network.status()) << text;
    EXPECT_FALSE(network->present) << text;
    EXPECT_EQ(network->config.interfaces_size(), 0);
  }
}

TEST(ParseNetwork, OutputThatIsCutShortIsAnErrorAndNotAPodWithoutRoutes) {
  const std::string links = fmt::format("[{}]", kEth);
  EXPECT_THAT(ParseNetwork("{", "", ""), HasStatus(StatusCode::kInvalidArgument, "ip addr"));
  EXPECT_THAT(ParseNetwork("{}", "", ""), HasStatus(StatusCode::kInvalidArgument, "ip addr"));
  EXPECT_THAT(ParseNetwork(links, R"([{"dst":"def)", ""),
              HasStatus(StatusCode::kInvalidArgument, "ip -4 route"));
  EXPECT_THAT(ParseNetwork(links, "[]", "{}"), HasStatus(StatusCode::kInvalidArgument, "ip -6 route"));
}

TEST(SetUpNetwork, ANamespaceThatIsNotThereIsNamed) {
  const testing::TempDir dir;
  EXPECT_THAT(SetUpNetwork(dir / "netns"), HasStatus(StatusCode::kNotFound, dir / "netns"));
  EXPECT_NOT_OK(SetUpNetwork(dir.path())) << "a folder is no namespace";
  EXPECT_OK(TearDownNetwork(dir / "netns"));
  EXPECT_OK(TearDownNetwork(""));
}

}  // namespace
}  // namespace lamina::cri
