#include "sizing/balloon_plan.h"

#include <algorithm>

#include "base/status.h"
#include "base/units.h"

namespace lamina::sizing {
namespace {

using Wide = unsigned __int128;

Wide Sum(const std::vector<BalloonGuest>& guests) {
  Wide sum = 0;
  for (const BalloonGuest& guest : guests) sum += guest.can_give_bytes;
  return sum;
}

}  // namespace

uint64_t BalloonFloor(uint64_t base, uint64_t used, uint64_t margin, uint64_t least) {
  const uint64_t needs = used > UINT64_MAX - margin ? UINT64_MAX : used + margin;
  return std::min(base, std::max(needs, least));
}

absl::StatusOr<std::map<std::string, uint64_t>> PlanLowering(const std::vector<BalloonGuest>& guests,
                                                             uint64_t need) {
  const Wide sum = Sum(guests);
  if (sum < need) {
    return MakeStatus(absl::StatusCode::kResourceExhausted,
                      "{} running VMs could give {} of the {} that are missing", guests.size(),
                      FormatBytes(static_cast<uint64_t>(sum)), FormatBytes(need));
  }
  std::map<std::string, uint64_t> gives;
  uint64_t missing = need;
  for (const BalloonGuest& guest : guests) {
    if (missing == 0) break;
    // The fraction rounded up to whole MiB: the last ones may have less to give than their share.
    const Wide share = (Wide{guest.can_give_bytes} * need + sum - 1) / sum;
    const uint64_t whole = (static_cast<uint64_t>(share) + kMiB - 1) / kMiB * kMiB;
    const uint64_t give = std::min(guest.can_give_bytes, whole);
    if (give == 0) continue;
    gives[guest.id] = give;
    missing -= std::min(missing, give);
  }
  return gives;
}

std::map<std::string, uint64_t> PlanRaising(const std::vector<BalloonGuest>& lowered, uint64_t available) {
  const Wide sum = Sum(lowered);
  std::map<std::string, uint64_t> gets;
  for (const BalloonGuest& guest : lowered) {
    uint64_t get = guest.can_give_bytes;
    if (available < sum) get = static_cast<uint64_t>(Wide{get} * available / sum) / kMiB * kMiB;
    if (get > 0) gets[guest.id] = get;
  }
  return gets;
}

}  // namespace lamina::sizing
