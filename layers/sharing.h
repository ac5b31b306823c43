// Who shares arenas with whom.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace lamina::layers {

enum class Sharing { kPod, kNamespace, kNode };

// "pod", "namespace" or "node"; anything else is InvalidArgument.
absl::StatusOr<Sharing> ParseSharing(std::string_view name);

struct PodName {
  std::string sandbox_id;
  std::string ns;  // empty: none is known
};
// The name of the pod's domain: VMs of one domain see one another's layers. A pod without a namespace shares
// with nobody, unless the whole node shares.
std::string DomainOf(Sharing sharing, const PodName& pod);

}  // namespace lamina::layers
