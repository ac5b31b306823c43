#include "layers/fair_turns.h"

#include <algorithm>

namespace lamina::layers {

std::optional<size_t> NextTurn(const std::vector<const DomainCounts*>& waiting,
                               const std::vector<const DomainCounts*>& under_way, const TurnLimits& limits) {
  if (under_way.size() >= limits.most + limits.extra) return std::nullopt;
  std::map<std::string, size_t> running;
  for (const DomainCounts* domains : under_way) {
    for (const auto& [domain, calls] : *domains) ++running[domain];
  }
  std::optional<size_t> next;
  size_t fewest = 0;
  for (size_t i = 0; i < waiting.size(); ++i) {
    size_t least = under_way.size();  // for whom nobody waits is not in a hurry
    for (const auto& [domain, calls] : *waiting[i]) {
      const auto it = running.find(domain);
      least = std::min(least, it == running.end() ? 0 : it->second);
    }
    if (next && least >= fewest) continue;
    next = i;
    fewest = least;
  }
  if (next && fewest > 0 && under_way.size() >= limits.most) return std::nullopt;
  return next;
}

}  // namespace lamina::layers
