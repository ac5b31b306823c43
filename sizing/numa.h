// Sets of NUMA nodes, and how bytes are divided over them.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace lamina::sizing {

using NumaNodes = std::set<uint32_t>;
using NodeBytes = std::map<uint32_t, uint64_t>;  // NUMA node -> bytes

inline constexpr uint32_t kMaxNumaNode = 127;  // the highest that QEMU binds memory to

// The kernel's list format: "0", "0,2", "0-1". InvalidArgument names `what` and the text: empty, no such
// list, a range upside down, a node named twice or above kMaxNumaNode.
absl::StatusOr<NumaNodes> ParseNumaNodes(std::string_view text, const std::string& what);
// "0,2-3"; "" for none.
std::string FormatNumaNodes(const NumaNodes& nodes);

// As much from each node, to the byte; what remains is one byte more from each of the first. Interleaved
// memory lies so, to the page. The sum is `bytes`; empty when `nodes` is.
NodeBytes DivideEvenly(uint64_t bytes, const NumaNodes& nodes);
// In proportion to `sizes`, whose nodes of 0 bytes get nothing and are left out. The sum is `bytes`.
NodeBytes DivideInProportion(uint64_t bytes, const NodeBytes& sizes);

}  // namespace lamina::sizing
