#include "guest/agent/network.h"

#include <arpa/inet.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "guest/agent/files.h"

namespace lamina::guest {
namespace {

// Builds one request: header, family struct, attributes.
template <typename Body>
std::string NewMessage(uint16_t type, uint16_t flags, const Body& body) {
  std::string message(NLMSG_HDRLEN, '\0');
  message.append(reinterpret_cast<const char*>(&body), sizeof body);
  message.resize(NLMSG_ALIGN(message.size()));
  nlmsghdr header{};
  header.nlmsg_type = type;
  header.nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags);
  std::memcpy(message.data(), &header, sizeof header);
  return message;
}

void AddAttribute(std::string& message, uint16_t type, const void* data, size_t size) {
  const rtattr attribute{static_cast<uint16_t>(RTA_LENGTH(size)), type};
  message.append(reinterpret_cast<const char*>(&attribute), sizeof attribute);
  message.append(static_cast<const char*>(data), size);
  message.resize(NLMSG_ALIGN(message.size()));
}

void AddNumber(std::string& message, uint16_t type, uint32_t value) {
  AddAttribute(message, type, &value, 4);
}

absl::StatusOr<int> IndexOf(const std::string& name) {
  RETURN_IF_ERROR(CheckInterfaceName(name));
  const unsigned index = if_nametoindex(name.c_str());
  if (index == 0) return MakeStatus(absl::StatusCode::kNotFound, "there is no network device {}", name);
  return static_cast<int>(index);
}

}  // namespace

absl::StatusOr<IpAddress> ParseIp(std::string_view text) {
  const size_t slash = text.find('/');
  const std::string host(text.substr(0, slash));
  IpAddress address;
  address.family = host.find(':') == std::string::npos ? AF_INET : AF_INET6;
  address.bytes.resize(address.family == AF_INET ? 4 : 16);
  const int bits = address.family == AF_INET ? 32 : 128;
  if (inet_pton(address.family, host.c_str(), address.bytes.data()) != 1) {
    return InvalidArgument("\"{}\" is not an IP address", text.substr(0, 64));
  }
  address.prefix = bits;
  if (slash != std::string_view::npos) {
    const auto prefix = ParseCount(text.substr(slash + 1));
    if (!prefix.ok() || *prefix > static_cast<uint64_t>(bits)) {
      return InvalidArgument("\"{}\": the prefix is not 0 to {}", text.substr(0, 64), bits);
    }
    address.prefix = static_cast<int>(*prefix);
  }
  return address;
}

absl::StatusOr<std::vector<uint8_t>> ParseMac(std::string_view text) {
  std::vector<uint8_t> bytes;
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  for (size_t at = 0; text.size() == 17 && at < 17; at += 3) {
    const int high = digit(text[at]), low = digit(text[at + 1]);
    if (high < 0 || low < 0 || (at + 2 < 17 && text[at + 2] != ':')) break;
    bytes.push_back(static_cast<uint8_t>(high * 16 + low));
  }
  if (bytes.size() != 6) return InvalidArgument("\"{}\" is not a MAC address", text.substr(0, 64));
  return bytes;
}

absl::Status CheckInterfaceName(std::string_view name) {
  const bool fine = !name.empty() && name.size() < IFNAMSIZ && name != "." && name != ".." &&
                    std::all_of(name.begin(), name.end(),
                                [](char c) { return c > ' ' && c < 127 && c != '/' && c != ':'; });
  if (fine) return absl::OkStatus();
  return InvalidArgument("\"{}\" cannot be the name of a network device", name.substr(0, 64));
}

absl::StatusOr<Network> Network::Open() {
  const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  if (fd < 0) return ErrnoStatus(errno, "open an rtnetlink socket");
  return Network(fd);
}

Network::Network(Network&& other) noexcept : fd_(std::exchange(other.fd_, -1)), sequence_(other.sequence_) {}

Network::~Network() {
  if (fd_ >= 0) close(fd_);
}

absl::Status Network::Transact(std::string& message, const std::string& what) {
  nlmsghdr header;
  std::memcpy(&header, message.data(), sizeof header);
  header.nlmsg_len = static_cast<uint32_t>(message.size());
  header.nlmsg_seq = ++sequence_;
  std::memcpy(message.data(), &header, sizeof header);
  if (send(fd_, message.data(), message.size(), 0) != static_cast<ssize_t>(message.size())) {
    return ErrnoStatus(errno, what);
  }
  for (;;) {
    alignas(nlmsghdr) char buffer[8192];
    const ssize_t n = recv(fd_, buffer, sizeof buffer, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, what);
    int left = static_cast<int>(n);
    for (const auto* answer = reinterpret_cast<const nlmsghdr*>(buffer);
         NLMSG_OK(answer, static_cast<unsigned>(left)); answer = NLMSG_NEXT(answer, left)) {
      if (answer->nlmsg_seq != sequence_ || answer->nlmsg_type != NLMSG_ERROR) continue;
      const int error = -static_cast<const nlmsgerr*>(NLMSG_DATA(answer))->error;
      return error == 0 ? absl::OkStatus() : ErrnoStatus(error, what);
    }
  }
}

absl::Status Network::LinkUp(const std::string& name) {
  ifinfomsg info{};
  ASSIGN_OR_RETURN(info.ifi_index, IndexOf(name));
  info.ifi_flags = IFF_UP;
  info.ifi_change = IFF_UP;
  std::string message = NewMessage(RTM_NEWLINK, 0, info);
  return Transact(message, "set up " + name);
}

absl::Status Network::Rename(const std::string& from, const std::string& to) {
  RETURN_IF_ERROR(CheckInterfaceName(to));
  if (from == to) return absl::OkStatus();
  if (const unsigned other = if_nametoindex(to.c_str()); other != 0) {
    RETURN_IF_ERROR(Rename(to, fmt::format("lamina-old{}", other)));
  }
  ifinfomsg info{};
  ASSIGN_OR_RETURN(info.ifi_index, IndexOf(from));
  info.ifi_change = IFF_UP;
  std::string down = NewMessage(RTM_NEWLINK, 0, info);
  RETURN_IF_ERROR(Transact(down, "set down " + from));
  info.ifi_change = 0;
  std::string rename = NewMessage(RTM_NEWLINK, 0, info);
  AddAttribute(rename, IFLA_IFNAME, to.c_str(), to.size() + 1);
  return Transact(rename, fmt::format("rename {} to {}", from, to));
}

absl::Status Network::SetMtu(const std::string& name, uint32_t mtu) {
  ifinfomsg info{};
  ASSIGN_OR_RETURN(info.ifi_index, IndexOf(name));
  std::string message = NewMessage(RTM_NEWLINK, 0, info);
  AddNumber(message, IFLA_MTU, mtu);
  return Transact(message, fmt::format("set the MTU of {} to {}", name, mtu));
}

absl::Status Network::AddAddress(const std::string& name, const IpAddress& address) {
  ifaddrmsg info{};
  ASSIGN_OR_RETURN(const int index, IndexOf(name));
  info.ifa_index = static_cast<uint32_t>(index);
  info.ifa_family = static_cast<uint8_t>(address.family);
  info.ifa_prefixlen = static_cast<uint8_t>(address.prefix);
  std::string message = NewMessage(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, info);
  AddAttribute(message, IFA_LOCAL, address.bytes.data(), address.bytes.size());
  AddAttribute(message, IFA_ADDRESS, address.bytes.data(), address.bytes.size());
  if (address.family == AF_INET6) {
    AddNumber(message, IFA_FLAGS, IFA_F_NODAD);
  } else if (address.prefix < 31) {
    uint8_t broadcast[4];
    const uint32_t host_bits = htonl(address.prefix == 0 ? ~0U : (1U << (32 - address.prefix)) - 1);
    uint32_t value;
    std::memcpy(&value, address.bytes.data(), 4);
    value |= host_bits;
    std::memcpy(broadcast, &value, 4);
    AddAttribute(message, IFA_BROADCAST, broadcast, 4);
  }
  return Transact(message, "add an address to " + name);
}

absl::Status Network::AddRoute(const RouteSpec& route) {
  rtmsg info{};
  info.rtm_family = route.ipv6 ? AF_INET6 : AF_INET;
  info.rtm_table = RT_TABLE_MAIN;
  info.rtm_protocol = RTPROT_BOOT;
  info.rtm_scope = route.scope;
  info.rtm_type = RTN_UNICAST;
  if (route.onlink) info.rtm_flags = RTNH_F_ONLINK;
  const auto parse = [&](const std::string& text) -> absl::StatusOr<IpAddress> {
    ASSIGN_OR_RETURN(IpAddress address, ParseIp(text));
    if (address.family != info.rtm_family)
      return InvalidArgument("route: {} is of the other IP version", text);
    return address;
  };
  IpAddress destination, gateway, source;
  if (!route.destination.empty()) {
    ASSIGN_OR_RETURN(destination, parse(route.destination));
    info.rtm_dst_len = static_cast<uint8_t>(destination.prefix);
  }
  if (!route.gateway.empty()) {
    ASSIGN_OR_RETURN(gateway, parse(route.gateway));
  } else if (route.scope == RT_SCOPE_UNIVERSE && !route.ipv6) {
    info.rtm_scope = RT_SCOPE_LINK;  // what the kernel wants of a route without a gateway
  }
  if (!route.source.empty()) {
    ASSIGN_OR_RETURN(source, parse(route.source));
  }
  std::string message = NewMessage(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, info);
  if (info.rtm_dst_len > 0)
    AddAttribute(message, RTA_DST, destination.bytes.data(), destination.bytes.size());
  if (!gateway.bytes.empty()) AddAttribute(message, RTA_GATEWAY, gateway.bytes.data(), gateway.bytes.size());
  if (!source.bytes.empty()) AddAttribute(message, RTA_PREFSRC, source.bytes.data(), source.bytes.size());
  if (!route.device.empty()) {
    ASSIGN_OR_RETURN(const int index, IndexOf(route.device));
    AddNumber(message, RTA_OIF, static_cast<uint32_t>(index));
  }
  if (route.metric > 0) AddNumber(message, RTA_PRIORITY, route.metric);
  const std::string what = fmt::format("add the route to {} via {} on {}",
                                       route.destination.empty() ? "default" : route.destination,
                                       route.gateway.empty() ? "nobody" : route.gateway, route.device);
  return Transact(message, what);
}

absl::Status Network::AddNeighbor(const std::string& device, const IpAddress& address,
                                  const std::vector<uint8_t>& mac) {
  ndmsg info{};
  ASSIGN_OR_RETURN(info.ndm_ifindex, IndexOf(device));
  info.ndm_family = static_cast<uint8_t>(address.family);
  info.ndm_state = NUD_PERMANENT;
  std::string message = NewMessage(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, info);
  AddAttribute(message, NDA_DST, address.bytes.data(), address.bytes.size());
  AddAttribute(message, NDA_LLADDR, mac.data(), mac.size());
  return Transact(message, "add a neighbour on " + device);
}

}  // namespace lamina::guest
