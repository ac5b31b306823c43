#include "sizing/pod.h"

#include <algorithm>

namespace lamina::sizing {

void PodLimits::Add(const std::string& name, const std::string& id, const Limits& limits) {
  const auto [it, is_new] = parts_.try_emplace(name);
  it->second.id = id;
  it->second.now = limits;
  if (is_new) it->second.first = limits;
}

void PodLimits::Update(const std::string& id, const Limits& limits) {
  for (auto& [name, part] : parts_) {
    if (part.id == id) part.now = limits;
  }
}

void PodLimits::Remove(const std::string& id) {
  const auto it =
      std::find_if(parts_.begin(), parts_.end(), [&](const auto& part) { return part.second.id == id; });
  if (it == parts_.end()) return;
  // What was resized stays known: the pod's sum is still the one of the start.
  if (it->second.first == it->second.now) {
    parts_.erase(it);
  } else {
    it->second.id.clear();
  }
}

const Limits* PodLimits::Find(const std::string& id) const {
  for (const auto& [name, part] : parts_) {
    if (part.id == id) return &part.now;
  }
  return nullptr;
}

void PodLimits::FillIn(PlanInput& input) const {
  input.pod = pod_;
  input.resized.clear();
  input.containers.clear();
  for (const auto& [name, part] : parts_) {
    if (!(part.first == part.now)) input.resized.push_back({part.first, part.now});
    if (!part.id.empty()) input.containers.push_back(part.now);
  }
}

}  // namespace lamina::sizing
