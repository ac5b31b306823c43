#include "layers/sharing.h"

#include "base/status.h"

namespace lamina::layers {

absl::StatusOr<Sharing> ParseSharing(std::string_view name) {
  if (name == "pod") return Sharing::kPod;
  if (name == "namespace") return Sharing::kNamespace;
  if (name == "node") return Sharing::kNode;
  return InvalidArgument("layers.sharing \"{}\": must be pod, namespace or node", name);
}

std::string DomainOf(Sharing sharing, const PodName& pod) {
  if (sharing == Sharing::kNode) return "node";
  if (sharing == Sharing::kNamespace && !pod.ns.empty()) return "namespace " + pod.ns;
  return "pod " + pod.sandbox_id;
}

}  // namespace lamina::layers
