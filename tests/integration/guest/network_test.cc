#include <gtest/gtest.h>

#include "tests/integration/guest/pod.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

TEST(GuestNetwork, ThePodsAddressesRoutesAndNamesAreSet) {
  GuestVm& vm = GuestVm::Shared();
  agent::v1::ConfigureSandboxRequest request;
  request.set_sandbox_id("pod-1");
  request.set_hostname("web-0");
  auto* interface = request.add_interfaces();
  interface->set_name("eth0");
  interface->set_mac("02:42:0A:01:02:03");
  interface->set_mtu(1400);
  interface->add_addresses("10.1.2.3/24");
  interface->add_addresses("fd00:1::3/64");
  auto* fallback = request.add_routes();
  fallback->set_gateway("169.254.1.1");
  fallback->set_device("eth0");
  fallback->set_onlink(true);
  auto* direct = request.add_routes();
  direct->set_destination("10.9.0.0/16");
  direct->set_device("eth0");
  direct->set_source("10.1.2.3");
  auto* via6 = request.add_routes();
  via6->set_ipv6(true);
  via6->set_gateway("fd00:1::1");
  via6->set_device("eth0");
  auto* neighbor = request.add_neighbors();
  neighbor->set_address("169.254.1.1");
  neighbor->set_mac("ee:ee:ee:ee:ee:ee");
  neighbor->set_device("eth0");
  (*request.mutable_sysctls())["net.ipv4.ip_unprivileged_port_start"] = "80";
  request.set_shared_tag(kSharedTag);
  for (int repeat = 0; repeat < 2; ++repeat) {
    const auto configured = vm.Call(kConfigureSandbox, request);
    ASSERT_OK(configured);
  }
  // Other content for the same pod is carried out as well, over what is there.
  (*request.mutable_sysctls())["net.ipv4.ip_unprivileged_port_start"] = "0";
  const auto again = vm.Call(kConfigureSandbox, request);
  ASSERT_OK(again);

  ContainerOptions options;
  options.args = {"/bin/sh", "-c",
                  "hostname; ip addr show eth0; ip route; ip -6 route; ip neigh; ip addr show lo;"
                  "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; grep shm /proc/mounts"};
  TestContainer container(vm, options);
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  container.Wait();
  const std::string out = container.out().ToEnd();
  for (const char* part :
       {"web-0\n", "mtu 1400", "inet 10.1.2.3/24 brd 10.1.2.255", "inet6 fd00:1::3/64",
        "default via 169.254.1.1 dev eth0 onlink", "10.9.0.0/16 dev eth0 scope link  src 10.1.2.3",
        "default via fd00:1::1 dev eth0", "169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee", "PERMANENT",
        "inet 127.0.0.1/8", "\n0\n", "size=65536k"}) {
    EXPECT_NE(out.find(part), std::string::npos) << part << " in:\n" << out;
  }
  EXPECT_EQ(out.find("tentative"), std::string::npos) << out;

  request.set_sandbox_id("pod-2");
  EXPECT_THAT(vm.Call(kConfigureSandbox, request), testing::HasStatus(absl::StatusCode::kFailedPrecondition));
}

TEST(GuestNetwork, ADeviceThatIsNotThereIsNamed) {
  GuestVm& vm = GuestVm::Shared();
  agent::v1::ConfigureSandboxRequest request;
  request.set_sandbox_id("pod-1");
  auto* interface = request.add_interfaces();
  interface->set_name("eth1");
  interface->set_mac("02:00:00:00:00:99");
  const auto configured = vm.Call(kConfigureSandbox, request);
  EXPECT_THAT(configured, testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_NE(std::string(configured.status().message()).find("02:00:00:00:00:99"), std::string::npos);
}

}  // namespace
}  // namespace lamina::guest
