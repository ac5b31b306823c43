// The pod's network is what the CNI gave it, for the guest as for the world.
#include <nlohmann/json.hpp>

#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

class NetworkTest : public SharedPodTest {
 protected:
  std::string Ip(const std::string& pod) {
    auto info = Cri().PodStatus(pod);
    EXPECT_OK(info.status());
    return info.ok() ? info->ip : "";
  }
  // Serves one line on a port of the container until the pod ends.
  void Serve(const std::string& container, int port, const std::string& text) {
    EXPECT_OK(
        ShellIn(container,
                fmt::format("mkdir -p /tmp/www{0}; echo {1} >/tmp/www{0}/x; httpd -p {0} -h /tmp/www{0}",
                            port, text))
            .status());
  }
};

TEST_F(NetworkTest, AddressMacMtuAndRoutesAreTheCnis) {
  ASSERT_OK_AND_ASSIGN(const PodInfo info, Cri().PodStatus(pod()));
  if (info.info.empty()) GTEST_SKIP() << "containerd tells no CNI result of a pod of the Sandbox service";
  const auto cni = nlohmann::json::parse(info.info, nullptr, false)["cniResult"]["Interfaces"]["eth0"];
  ASSERT_TRUE(cni.is_object()) << info.info;
  EXPECT_EQ(info.ip, cni["IPConfigs"][0]["IP"]);
  EXPECT_EQ(info.ip.rfind(TestNode().pod_prefix(), 0), 0U);
  const std::string links = Shell("ip addr show dev eth0");
  EXPECT_THAT(links, HasSubstr(info.ip + "/24"));
  EXPECT_THAT(links, HasSubstr(cni.value("Mac", "no MAC in the CNI's result")));
  EXPECT_THAT(links, HasSubstr(fmt::format("mtu {}", TestNode().mtu())));
  const std::string routes = Shell("ip route");
  EXPECT_THAT(routes, HasSubstr("default via " + TestNode().gateway() + " dev eth0"));
  EXPECT_THAT(routes, HasSubstr(TestNode().pod_prefix() + "0/24 dev eth0"));
  EXPECT_THAT(Shell("ip addr show dev lo"), HasSubstr("127.0.0.1/8"));
  EXPECT_EQ(Trim(Shell("ls /sys/class/net | grep -v -e '^lo$' -e '^eth0$' | grep -c -e tap -e veth; true")),
            "0");
}

TEST_F(NetworkTest, HostReachesPod) {
  Serve(container(), 8001, "from-the-pod");
  HttpResponse answer;
  ASSERT_OK(Eventually(In(seconds(15)), [&]() -> absl::Status {
    ASSIGN_OR_RETURN(answer, HttpGet(Ip(pod()), 8001, "/x", In(seconds(2))));
    return absl::OkStatus();
  }));
  EXPECT_EQ(answer.body, "from-the-pod\n");
}

TEST_F(NetworkTest, PodReachesHost) {
  ASSERT_OK_AND_ASSIGN(const auto server, HttpServer::Start(TestNode().gateway(), 0, "the host"));
  EXPECT_EQ(Shell(fmt::format("/probe fetch {} {} /", TestNode().gateway(), server->port())),
            fmt::format("the host from {}\n", Ip(pod())));
}

TEST_F(NetworkTest, PodReachesOutsideAndBack) {
  ASSERT_OK_AND_ASSIGN(const auto server, HttpServer::Start(TestNode().outside_address(), 80, "outside",
                                                            TestNode().outside_netns()));
  EXPECT_EQ(Shell(fmt::format("/probe fetch {} 80 /", TestNode().outside_address())),
            fmt::format("outside from {}\n", Ip(pod())));
  Serve(container(), 8002, "inward");
  ASSERT_OK_AND_ASSIGN(const HttpResponse answer,
                       HttpGet(Ip(pod()), 8002, "/x", In(seconds(10)), TestNode().outside_netns()));
  EXPECT_EQ(answer.body, "inward\n");
}

TEST_F(NetworkTest, PodReachesPodAndBulkArrivesUnchanged) {
  PodSpec spec;
  spec.name = "peer";
  ASSERT_OK_AND_ASSIGN(const ScopedPod peer, ScopedPod::Run(spec));
  ASSERT_OK_AND_ASSIGN(const std::string other, Cri().RunContainer(peer.id(), Sleeper()));
  EXPECT_NE(Ip(peer.id()), Ip(pod()));
  ASSERT_OK(
      ShellIn(other, "mkdir /tmp/www; seq 1 400000 >/tmp/www/bulk; httpd -p 9000 -h /tmp/www").status());
  ASSERT_OK_AND_ASSIGN(const std::string sent, ShellIn(other, "sha256sum </tmp/www/bulk"));
  EXPECT_EQ(Shell(fmt::format("/probe fetch {} 9000 /bulk | sha256sum", Ip(peer.id()))), sent);
  // Full frames pass both ways.
  EXPECT_THAT(Shell(fmt::format("ping -c 2 -W 5 -s {} {}", TestNode().mtu() - 28, Ip(peer.id()))),
              HasSubstr(" 0% packet loss"));
}

TEST_F(NetworkTest, AHostPortLeadsToThePod) {
  ASSERT_OK_AND_ASSIGN(const uint16_t port, FreePort());
  PodSpec spec;
  spec.name = "mapped";
  spec.host_ports = {{port, 8080}};
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), Sleeper()));
  Serve(id, 8080, "mapped");
  ASSERT_OK_AND_ASSIGN(const HttpResponse answer, HttpGet(TestNode().gateway(), port, "/x", In(seconds(10)),
                                                          TestNode().outside_netns()));
  EXPECT_EQ(answer.body, "mapped\n");
}

TEST_F(NetworkTest, NamesAndSysctls) {
  PodSpec spec;
  spec.name = "named";
  spec.hostname = "a-host-of-its-own";
  spec.dns_servers = {"10.96.0.10", "10.96.0.11"};
  spec.dns_searches = {"e2e.svc.cluster.local", "svc.cluster.local"};
  spec.dns_options = {"ndots:5"};
  spec.sysctls = {{"net.ipv4.ip_unprivileged_port_start", "0"}, {"net.core.somaxconn", "777"}};
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  ContainerSpec container = Sleeper();
  container.user = 1000;
  container.drop_capabilities = {"ALL"};
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), container));
  ASSERT_OK_AND_ASSIGN(const std::string names, ShellIn(id, "hostname; cat /etc/hostname"));
  EXPECT_EQ(names, "a-host-of-its-own\na-host-of-its-own\n");
  ASSERT_OK_AND_ASSIGN(const std::string resolv, ShellIn(id, "cat /etc/resolv.conf"));
  EXPECT_EQ(resolv,
            "search e2e.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\nnameserver "
            "10.96.0.11\noptions ndots:5\n");
  ASSERT_OK_AND_ASSIGN(const std::string hosts, ShellIn(id, "cat /etc/hosts"));
  EXPECT_THAT(hosts, HasSubstr("127.0.0.1"));
  ASSERT_OK_AND_ASSIGN(const std::string somaxconn, ShellIn(id, "cat /proc/sys/net/core/somaxconn"));
  EXPECT_EQ(somaxconn, "777\n");
  EXPECT_OK(ShellIn(id, "mkdir /tmp/www; httpd -p 80 -h /tmp/www").status())
      << "port 80 without any capability";
}

TEST_F(NetworkTest, TheHostsNetworkIsRefusedInClearWords) {
  LAMINA_ONLY();
  PodSpec spec;
  spec.name = "hostnet";
  spec.host_network = true;
  const auto begin = std::chrono::steady_clock::now();
  const auto pod = Cri().RunPod(spec);
  ASSERT_NOT_OK(pod);
  EXPECT_THAT(Message(pod.status()), HasSubstr("hostNetwork"));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, seconds(10));
}

}  // namespace
}  // namespace lamina::e2e
