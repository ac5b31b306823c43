// The pod's network: the CNI has put an interface into the pod's namespace; its frames go to a tap and so to
// the guest, which takes its MAC and addresses.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "proto/agent.pb.h"

namespace lamina::cri {

inline constexpr char kTapName[] = "lamina-tap0";

struct PodNetwork {
  bool present = false;  // false: the namespace has no interface but lo
  std::string device;    // the CNI's interface
  std::string mac;
  UniqueFd tap;                               // for QEMU
  agent::v1::ConfigureSandboxRequest config;  // interfaces, routes, neighbors
};

// Reads the namespace, makes the tap and redirects frames both ways. What is there already (a repeated call)
// is replaced. On error nothing stays.
absl::StatusOr<PodNetwork> SetUpNetwork(const std::string& netns_path);

// Removes tap and redirect. A namespace that is gone took them along: OK.
absl::Status TearDownNetwork(const std::string& netns_path);

// Pure: the output of `ip -j addr show`, `ip -j -4 route show`, `ip -j -6 route show` -> the guest's
// configuration. The first interface that is up, not lo and not a tap, counts.
absl::StatusOr<PodNetwork> ParseNetwork(const std::string& addresses, const std::string& routes4,
                                        const std::string& routes6);

}  // namespace lamina::cri
