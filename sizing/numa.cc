#include "sizing/numa.h"

#include <charconv>
#include <vector>

#include "base/status.h"

namespace lamina::sizing {

absl::StatusOr<NumaNodes> ParseNumaNodes(std::string_view text, const std::string& what) {
  const auto bad = [&](const std::string& why) {
    return InvalidArgument("{}: \"{}\" is no list of NUMA nodes such as \"0\", \"0,2\" or \"0-1\": {}", what,
                           text, why);
  };
  if (text.empty()) return bad("it is empty");
  NumaNodes nodes;
  const char *at = text.data(), *const end = at + text.size();
  const auto number = [&](uint32_t& node) {
    const auto [next, error] = std::from_chars(at, end, node);
    if (error == std::errc::result_out_of_range || (error == std::errc() && node > kMaxNumaNode))
      return bad(fmt::format("node {} is above {}, the highest that QEMU binds to",
                             std::string_view(at, static_cast<size_t>(next - at)), kMaxNumaNode));
    if (error != std::errc()) return bad("a number is missing");
    at = next;
    return absl::OkStatus();
  };
  for (;;) {
    uint32_t first = 0;
    RETURN_IF_ERROR(number(first));
    uint32_t last = first;
    if (at != end && *at == '-') {
      ++at;
      RETURN_IF_ERROR(number(last));
      if (last < first) return bad(fmt::format("{}-{} is upside down", first, last));
    }
    for (uint32_t node = first; node <= last; ++node) {
      if (!nodes.insert(node).second) return bad(fmt::format("node {} is named twice", node));
    }
    if (at == end) return nodes;
    if (*at++ != ',') return bad(fmt::format("'{}' stands in it", at[-1]));
  }
}

std::string FormatNumaNodes(const NumaNodes& nodes) {
  std::string out;
  for (auto it = nodes.begin(); it != nodes.end();) {
    const uint32_t first = *it;
    uint32_t last = first;
    while (++it != nodes.end() && *it == last + 1) ++last;
    out += fmt::format("{}{}", out.empty() ? "" : ",", first);
    if (last > first) out += fmt::format("-{}", last);
  }
  return out;
}

NodeBytes DivideEvenly(uint64_t bytes, const NumaNodes& nodes) {
  NodeBytes parts;
  uint64_t left = bytes, nodes_left = nodes.size();
  for (const uint32_t node : nodes) {
    const uint64_t part = left / nodes_left + (left % nodes_left != 0 ? 1 : 0);
    parts[node] = part;
    left -= part;
    --nodes_left;
  }
  return parts;
}

NodeBytes DivideInProportion(uint64_t bytes, const NodeBytes& sizes) {
  NodeBytes parts;
  unsigned __int128 whole = 0;
  for (const auto& [node, size] : sizes) whole += size;
  uint64_t left = bytes;
  for (const auto& [node, size] : sizes) {
    if (size == 0) continue;
    // The last one's is all that is left.
    const auto part = static_cast<uint64_t>(static_cast<unsigned __int128>(left) * size / whole);
    parts[node] = part;
    left -= part;
    whole -= size;
  }
  return parts;
}

}  // namespace lamina::sizing
