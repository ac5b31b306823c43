// How far running VMs are lowered for one that does not fit, and raised again. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace lamina::sizing {

// What a guest of `base` bytes keeps: what it was seen to use and `margin` more, at least `least`, at most
// all.
uint64_t BalloonFloor(uint64_t base, uint64_t used, uint64_t margin, uint64_t least);

struct BalloonGuest {
  std::string id;
  uint64_t can_give_bytes = 0;
};

// How much each gives so that `need` bytes come together: all the same fraction of what they can, in whole
// MiB, never more than they can. ResourceExhausted, with the sum, when it is less than `need`; then nobody
// gives.
absl::StatusOr<std::map<std::string, uint64_t>> PlanLowering(const std::vector<BalloonGuest>& guests,
                                                             uint64_t need);

// How much of `available` each gets back of what it gave (can_give_bytes): all the same fraction, in whole
// MiB, or all of it where that is within reach.
std::map<std::string, uint64_t> PlanRaising(const std::vector<BalloonGuest>& lowered, uint64_t available);

}  // namespace lamina::sizing
