#include "cri/network.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/status.h"
#include "base/subprocess.h"
#include "base/ttrpc/thread.h"

namespace lamina::cri {
namespace {

using nlohmann::json;

constexpr std::chrono::seconds kToolTimeout{10};

std::string Text(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

absl::StatusOr<std::string> Output(const std::vector<std::string>& argv) {
  ASSIGN_OR_RETURN(CommandResult result, RunCommand(argv, kToolTimeout));
  if (result.exit_code != 0) {
    return MakeStatus(absl::StatusCode::kInternal, "{}: exit code {}: {}", fmt::join(argv, " "),
                      result.exit_code, result.output);
  }
  return std::move(result.output);
}

// Runs `body` on a thread inside the namespace: setns changes one thread only, and children inherit it.
absl::Status InNamespace(const std::string& path, const std::function<absl::Status()>& body) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "open the pod's network namespace " + path);
  absl::Status status;
  const auto inside = [&] {
    if (setns(fd.get(), CLONE_NEWNET) != 0) {
      status = ErrnoStatus(errno, "enter the pod's network namespace " + path);
      return;
    }
    status = body();
  };
  ASSIGN_OR_RETURN(std::thread thread, ttrpc::NewThread(inside));
  thread.join();
  return status;
}

absl::StatusOr<UniqueFd> OpenTap() {
  UniqueFd fd(open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "open /dev/net/tun");
  ifreq request{};
  request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  strncpy(request.ifr_name, kTapName, IFNAMSIZ - 1);
  if (ioctl(fd.get(), TUNSETIFF, &request) != 0)
    return ErrnoStatus(errno, std::string("make tap ") + kTapName);
  return fd;
}

absl::Status Redirect(const std::string& from, const std::string& to) {
  RETURN_IF_ERROR(RunChecked({"tc", "qdisc", "replace", "dev", from, "ingress"}, kToolTimeout));
  // u32 and not matchall: the latter may be missing from the host's kernel.
  return RunChecked({"tc", "filter", "replace",  "dev",      from,     "parent",   "ffff:", "prio",
                     "1",  "handle", "800::800", "protocol", "all",    "u32",      "match", "u32",
                     "0",  "0",      "action",   "mirred",   "egress", "redirect", "dev",   to},
                    kToolTimeout);
}

void RemoveRedirect(const std::string& device) {
  RunCommand({"tc", "qdisc", "del", "dev", device, "ingress"}, kToolTimeout).status().IgnoreError();
}

void AddRoutes(const json& routes, bool ipv6, const std::string& device,
               agent::v1::ConfigureSandboxRequest& config) {
  for (const json& item : routes) {
    if (!item.is_object() || Text(item, "dev") != device) continue;
    const std::string destination = Text(item, "dst"), protocol = Text(item, "protocol");
    // The kernel makes these itself when the address is set.
    if (protocol == "kernel" || Text(item, "type") == "local" || Text(item, "type") == "multicast") continue;
    agent::v1::Route* route = config.add_routes();
    if (destination != "default")
      route->set_destination(
          destination.find('/') == std::string::npos ? destination + (ipv6 ? "/128" : "/32") : destination);
    route->set_gateway(Text(item, "gateway"));
    route->set_source(Text(item, "prefsrc"));
    route->set_device("eth0");
    route->set_ipv6(ipv6);
    if (Text(item, "scope") == "link") route->set_scope(253);  // RT_SCOPE_LINK
    const auto metric = item.find("metric");
    if (metric != item.end() && metric->is_number_unsigned()) route->set_metric(metric->get<uint32_t>());
    const auto flags = item.find("flags");
    if (flags == item.end() || !flags->is_array()) continue;
    for (const json& flag : *flags) {
      if (flag == "onlink") route->set_onlink(true);
    }
  }
}

}  // namespace

absl::StatusOr<PodNetwork> ParseNetwork(const std::string& addresses, const std::string& routes4,
                                        const std::string& routes6) {
  PodNetwork network;
  const json links = json::parse(addresses.empty() ? "[]" : addresses, nullptr, false);
  if (!links.is_array()) return InvalidArgument("ip addr: not a JSON list");
  for (const json& link : links) {
    if (!link.is_object()) continue;
    const std::string name = Text(link, "ifname"), kind = Text(link, "link_type");
    if (kind != "ether" || name == kTapName) continue;
    const std::string state = link.contains("flags") ? link["flags"].dump() : "";
    if (state.find("\"UP\"") == std::string::npos) continue;
    network.present = true;
    network.device = name;
    network.mac = Text(link, "address");
    agent::v1::Interface* interface = network.config.add_interfaces();
    interface->set_name("eth0");
    interface->set_mac(network.mac);
    if (const auto mtu = link.find("mtu"); mtu != link.end() && mtu->is_number_unsigned())
      interface->set_mtu(mtu->get<uint32_t>());
    if (const auto infos = link.find("addr_info"); infos != link.end() && infos->is_array()) {
      for (const json& info : *infos) {
        const auto prefix = info.find("prefixlen");
        if (Text(info, "scope") == "link" || prefix == info.end() || !prefix->is_number_unsigned()) continue;
        interface->add_addresses(fmt::format("{}/{}", Text(info, "local"), prefix->get<unsigned>()));
      }
    }
    break;
  }
  if (!network.present) return network;
  for (const auto& [text, ipv6] : {std::pair<const std::string&, bool>(routes4, false), {routes6, true}}) {
    const json routes = json::parse(text.empty() ? "[]" : text, nullptr, false);
    if (!routes.is_array()) return InvalidArgument("ip -{} route: not a JSON list", ipv6 ? 6 : 4);
    AddRoutes(routes, ipv6, network.device, network.config);
  }
  return network;
}

absl::StatusOr<PodNetwork> SetUpNetwork(const std::string& netns_path) {
  PodNetwork network;
  const absl::Status status = InNamespace(netns_path, [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string addresses, Output({"ip", "-j", "addr", "show"}));
    ASSIGN_OR_RETURN(const std::string routes4, Output({"ip", "-j", "-4", "route", "show"}));
    ASSIGN_OR_RETURN(const std::string routes6, Output({"ip", "-j", "-6", "route", "show"}));
    ASSIGN_OR_RETURN(network, ParseNetwork(addresses, routes4, routes6));
    if (!network.present) return absl::OkStatus();
    ASSIGN_OR_RETURN(network.tap, OpenTap());
    const std::string mtu = std::to_string(network.config.interfaces(0).mtu());
    RETURN_IF_ERROR(RunChecked({"ip", "link", "set", "dev", kTapName, "mtu", mtu, "up"}, kToolTimeout));
    absl::Status redirected = Redirect(network.device, kTapName);
    if (redirected.ok()) redirected = Redirect(kTapName, network.device);
    if (!redirected.ok()) RemoveRedirect(network.device);
    return redirected;
  });
  if (!status.ok()) return Annotate(status, "set up the pod's network");
  return network;
}

absl::Status TearDownNetwork(const std::string& netns_path) {
  if (netns_path.empty() || access(netns_path.c_str(), F_OK) != 0) return absl::OkStatus();
  const absl::Status status = InNamespace(netns_path, [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string addresses, Output({"ip", "-j", "addr", "show"}));
    const absl::StatusOr<PodNetwork> network = ParseNetwork(addresses, "", "");
    if (network.ok() && network->present) RemoveRedirect(network->device);
    RunCommand({"ip", "link", "del", "dev", kTapName}, kToolTimeout).status().IgnoreError();
    return absl::OkStatus();
  });
  // A path whose mount is gone cannot be entered; neither is there anything left in it.
  return status.code() == absl::StatusCode::kInvalidArgument ? absl::OkStatus() : status;
}

}  // namespace lamina::cri
