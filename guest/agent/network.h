// The pod's network inside the guest: what CNI gave the pod, put on the virtio-net device, by rtnetlink.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::guest {

struct IpAddress {
  int family = 0;              // AF_INET, AF_INET6
  std::vector<uint8_t> bytes;  // 4 or 16
  int prefix = 0;              // bits; 32 or 128 without "/n"
};

// "10.1.2.3/24", "fd00::1". InvalidArgument with the text.
absl::StatusOr<IpAddress> ParseIp(std::string_view text);
// "02:42:0a:01:02:03" -> six bytes.
absl::StatusOr<std::vector<uint8_t>> ParseMac(std::string_view text);
// 1-15 characters, none of '/', ':', blanks; not "." or "..".
absl::Status CheckInterfaceName(std::string_view name);

struct RouteSpec {
  std::string destination, gateway, source, device;
  uint8_t scope = 0;
  bool onlink = false;
  bool ipv6 = false;
  uint32_t metric = 0;
};

// One rtnetlink socket. Not thread-safe. Every call can be repeated: what is there already is replaced.
class Network {
 public:
  static absl::StatusOr<Network> Open();
  Network(Network&& other) noexcept;
  ~Network();

  absl::Status LinkUp(const std::string& name);
  // Renames `from` to `to` (down for that moment); a device that has that name already is moved to
  // "lamina-old<index>".
  absl::Status Rename(const std::string& from, const std::string& to);
  absl::Status SetMtu(const std::string& name, uint32_t mtu);
  // Without duplicate address detection: CNI's IPAM has made it unique, and a tentative address could not be
  // used yet.
  absl::Status AddAddress(const std::string& name, const IpAddress& address);
  absl::Status AddRoute(const RouteSpec& route);
  absl::Status AddNeighbor(const std::string& device, const IpAddress& address,
                           const std::vector<uint8_t>& mac);

 private:
  explicit Network(int fd) : fd_(fd) {}
  absl::Status Transact(std::string& message, const std::string& what);
  int fd_ = -1;
  uint32_t sequence_ = 0;
};

}  // namespace lamina::guest
