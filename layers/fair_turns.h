// Whose conversion is next: no domain's image keeps another domain's first one waiting. Pure.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace lamina::layers {

// The sharing domains that wait for one image, with the number of their calls.
using DomainCounts = std::map<std::string, size_t>;

struct TurnLimits {
  size_t most = 2;   // at a time, whoever asks
  size_t extra = 8;  // beyond them: each for a domain that waits and has none under way
};

// The index in `waiting` (in the order of arrival) of what may begin now; nothing where all must wait.
//
// An image is under way for each domain that waits for it. Before all others comes an image of a domain that
// has none under way, and it may take an extra turn: a domain never waits for another's second image. Then
// comes that of the domain with the fewest under way.
std::optional<size_t> NextTurn(const std::vector<const DomainCounts*>& waiting,
                               const std::vector<const DomainCounts*>& under_way, const TurnLimits& limits);

}  // namespace lamina::layers
