#include "node/balloons.h"

#include <algorithm>
#include <set>

#include "base/log.h"
#include "base/status.h"
#include "base/units.h"

namespace lamina::node {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr milliseconds kLookEvery{50};
constexpr seconds kPassOverAfter{5};
constexpr seconds kUncooperativeAfter{20};
constexpr int64_t kFreshSeconds = 3 * vmm::kBalloonStatsSeconds;  // an answer may be late on a busy node
constexpr int64_t kUsedOverSeconds = 60;

}  // namespace

absl::Status Balloons::Sample(const std::string& id) {
  std::shared_ptr<vmm::Balloon> balloon;
  {
    MutexLock lock(mutex_);
    const auto it = guests_.find(id);
    if (it == guests_.end() || it->second.balloon == nullptr)
      return MakeStatus(absl::StatusCode::kUnavailable, "sandbox {}: its balloon is not reached", id);
    balloon = it->second.balloon;
  }
  const absl::StatusOr<vmm::BalloonSample> sample = balloon->Sample();
  MutexLock lock(mutex_);
  const auto it = guests_.find(id);
  if (it == guests_.end() || it->second.balloon != balloon)
    return MakeStatus(absl::StatusCode::kUnavailable, "sandbox {}: it has gone", id);
  Guest& guest = it->second;
  if (!sample.ok()) {
    guest.balloon = nullptr;  // connected to anew
    guest.sampled = false;
    return Annotate(sample.status(), "sandbox " + id);
  }
  guest.sample = *sample;
  guest.sampled = true;
  if (guest.sample.inflated_bytes() < guest.vm.lowered_bytes && !guest.uncooperative) {
    guest.uncooperative = true;  // it has said what its floor is worth
    LogWarning("balloon: sandbox {} took back {} of what it had given; it is not asked any more", id,
               FormatBytes(guest.vm.lowered_bytes - guest.sample.inflated_bytes()));
  }
  if (sample->stats_unix_seconds != 0) {
    guest.used[sample->stats_unix_seconds] = sample->used_bytes;
    guest.used.erase(guest.used.begin(),
                     guest.used.lower_bound(sample->stats_unix_seconds - kUsedOverSeconds));
  }
  return absl::OkStatus();
}

void Balloons::Update(const std::vector<BalloonVm>& vms) {
  std::set<std::string> known;
  for (const BalloonVm& vm : vms) {
    known.insert(vm.id);
    bool connect = false;
    std::string runtime_dir = vm.runtime_dir;
    {
      MutexLock lock(mutex_);
      Guest& guest = guests_[vm.id];
      if (guest.vm.vmm_pid != vm.vmm_pid) guest = Guest();  // another VM under the same name
      if (runtime_dir.empty()) runtime_dir = guest.vm.runtime_dir;
      guest.vm = vm;
      guest.vm.runtime_dir = runtime_dir;
      connect = guest.balloon == nullptr;
    }
    if (connect) {
      absl::StatusOr<std::unique_ptr<vmm::Balloon>> balloon = host_.OpenBalloon(runtime_dir);
      if (!balloon.ok()) continue;
      MutexLock lock(mutex_);
      guests_[vm.id].balloon = std::move(*balloon);
    }
    const absl::Status sampled = Sample(vm.id);
    if (!sampled.ok()) LogWarning("balloon: {}", Message(sampled));
  }
  MutexLock lock(mutex_);
  for (auto it = guests_.begin(); it != guests_.end();)
    it = known.count(it->first) == 0 ? guests_.erase(it) : std::next(it);
}

uint64_t Balloons::FloorLocked(const Guest& guest) const {
  uint64_t most = 0;
  for (const auto& [second, used] : guest.used) most = std::max(most, used);
  return sizing::BalloonFloor(guest.sample.base_bytes, most, config_.balloon_margin_bytes,
                              config_.balloon_floor_bytes);
}

uint64_t Balloons::CanGiveLocked(const Guest& guest) const {
  if (!guest.sampled || guest.uncooperative || guest.used.empty()) return 0;
  const int64_t now = UnixNanos(clock_.Wall()) / 1'000'000'000;
  if (guest.sample.stats_unix_seconds < now - kFreshSeconds) return 0;
  const uint64_t floor = FloorLocked(guest);
  return guest.sample.actual_bytes > floor ? guest.sample.actual_bytes - floor : 0;
}

std::vector<sizing::BalloonGuest> Balloons::CandidatesLocked(const std::string& taker) const {
  std::vector<sizing::BalloonGuest> candidates;
  for (const auto& [id, guest] : guests_) {
    if (id == taker) continue;
    if (const uint64_t can = CanGiveLocked(guest); can > 0) candidates.push_back({id, can});
  }
  return candidates;
}

absl::Status Balloons::CouldGive(uint64_t need, const std::string& taker) const {
  MutexLock lock(mutex_);
  const absl::Status status = sizing::PlanLowering(CandidatesLocked(taker), need).status();
  std::string names;
  for (const auto& [id, guest] : guests_) {
    if (guest.uncooperative) names += (names.empty() ? "" : ", ") + id;
  }
  if (status.ok() || names.empty()) return status;
  return MakeStatus(status.code(), "{}; not asked, because they did not cooperate: {}", Message(status),
                    names);
}

void Balloons::StalledLocked(Guest& guest, const Asked& one) {
  guest.stalled += std::chrono::duration_cast<milliseconds>(clock_.Now() - one.progress);
  if (guest.stalled < kUncooperativeAfter || guest.uncooperative) return;
  guest.uncooperative = true;
  LogWarning("balloon: sandbox {} gave nothing for {} s of asking; it is not asked any more", guest.vm.id,
             kUncooperativeAfter.count());
}

uint64_t Balloons::CountedLocked(const Guest& guest) const {
  const uint64_t inflated = std::min(guest.sample.inflated_bytes(), guest.vm.claim_bytes);
  return std::max(guest.vm.claim_bytes - inflated, host_.ResidentBytes(guest.vm.vmm_pid));
}

absl::Status Balloons::SetTarget(const std::string& id, uint64_t bytes) {
  std::shared_ptr<vmm::Balloon> balloon;
  {
    MutexLock lock(mutex_);
    if (const auto it = guests_.find(id); it != guests_.end()) balloon = it->second.balloon;
  }
  if (balloon == nullptr)
    return MakeStatus(absl::StatusCode::kUnavailable, "sandbox {}: its balloon is not reached", id);
  return Annotate(balloon->SetTarget(bytes), "sandbox " + id);
}

absl::Status Balloons::Ask(uint64_t need, const std::string& taker, std::map<std::string, Asked>& asked) {
  std::vector<sizing::BalloonGuest> candidates;
  std::map<std::string, uint64_t> actual;
  {
    MutexLock lock(mutex_);
    for (sizing::BalloonGuest candidate : CandidatesLocked(taker)) {
      uint64_t now = guests_[candidate.id].sample.actual_bytes;
      if (const auto before = asked.find(candidate.id); before != asked.end()) {
        if (before->second.passed_over) continue;
        // It gives that already, and what more it can.
        const uint64_t promised = now - std::min(now, before->second.target);
        candidate.can_give_bytes -= std::min(candidate.can_give_bytes, promised);
        now = std::min(now, before->second.target);
      }
      if (candidate.can_give_bytes == 0) continue;
      actual[candidate.id] = now;
      candidates.push_back(candidate);
    }
  }
  ASSIGN_OR_RETURN(const auto gives, sizing::PlanLowering(candidates, need));
  for (const auto& [id, give] : gives) {
    Asked& one = asked[id];
    if (one.from == 0) one.from = one.last = actual[id];
    one.target = actual[id] - give;
    one.progress = clock_.Now();
    const absl::Status status = SetTarget(id, one.target);
    if (!status.ok()) one.passed_over = true;
  }
  return absl::OkStatus();
}

BalloonRound Balloons::Lower(uint64_t need, const std::string& taker, MonotonicTime deadline) {
  BalloonRound round;
  std::vector<std::string> ids;
  {
    MutexLock lock(mutex_);
    for (const auto& [id, guest] : guests_) ids.push_back(id);
  }
  for (const std::string& id : ids) Sample(id).IgnoreError();
  std::map<std::string, uint64_t> counted_before;
  {
    MutexLock lock(mutex_);
    for (const auto& [id, guest] : guests_) {
      if (guest.sampled) counted_before[id] = CountedLocked(guest);
    }
  }
  std::map<std::string, Asked> asked;
  round.status = Ask(need, taker, asked);
  while (round.status.ok()) {
    uint64_t freed = 0, promised = 0;  // promised: what those still asked have not brought yet
    bool replan = false;
    for (auto& [id, one] : asked) {
      const bool answers = Sample(id).ok();
      MutexLock lock(mutex_);
      const auto it = guests_.find(id);
      if (it == guests_.end() || !answers) {
        replan |= !one.passed_over;
        one.passed_over = true;
        continue;
      }
      Guest& guest = it->second;
      const uint64_t actual = guest.sample.actual_bytes, counted = CountedLocked(guest);
      freed += counted_before[id] - std::min(counted_before[id], counted);
      if (actual < one.last) {
        guest.stalled = milliseconds(0);
        one.last = actual;
        one.progress = clock_.Now();
      }
      if (one.passed_over) continue;
      if (actual > one.target) {
        promised += actual - one.target;
        if (clock_.Now() - one.progress >= kPassOverAfter) {
          StalledLocked(guest, one);
          one.passed_over = replan = true;
          promised -= actual - one.target;
        }
      }
    }
    if (freed >= need) break;
    if (clock_.Now() >= deadline) {
      round.status =
          MakeStatus(absl::StatusCode::kDeadlineExceeded,
                     "balloons gave {} of the {} that are missing before the claim's time was over",
                     FormatBytes(freed), FormatBytes(need));
      break;
    }
    if (replan || promised == 0) {
      for (auto& [id, one] : asked) {
        if (one.passed_over) SetTarget(id, one.last).IgnoreError();  // it keeps what it has not given
      }
      const uint64_t missing = need - freed;
      if (missing > promised) round.status = Ask(missing - promised, taker, asked);
      continue;
    }
    host_.Nap(kLookEvery);
  }
  for (const auto& [id, one] : asked) {
    if (one.passed_over) round.passed_over.push_back(id);
    MutexLock lock(mutex_);
    const auto it = guests_.find(id);
    if (it != guests_.end() && !one.passed_over && it->second.sample.actual_bytes > one.target)
      StalledLocked(it->second, one);
  }
  for (const auto& [id, one] : asked) {
    const absl::Status status = SetTarget(id, round.status.ok() ? one.last : one.from);
    if (!status.ok()) LogWarning("balloon: {}", Message(status));
  }
  for (const std::string& id : ids) {
    const bool answers = asked.count(id) != 0 && Sample(id).ok();
    MutexLock lock(mutex_);
    const auto it = guests_.find(id);
    if (it == guests_.end()) continue;
    if (it->second.uncooperative) round.uncooperative.push_back(id);
    if (round.status.ok() && answers) round.inflated[id] = it->second.sample.inflated_bytes();
  }
  return round;
}

absl::Status Balloons::Raise(const std::string& id, uint64_t bytes) {
  RETURN_IF_ERROR(Sample(id));
  uint64_t target = 0;
  {
    MutexLock lock(mutex_);
    const auto it = guests_.find(id);
    if (it == guests_.end()) return MakeStatus(absl::StatusCode::kNotFound, "sandbox {}: it has gone", id);
    const vmm::BalloonSample& sample = it->second.sample;
    target = sample.actual_bytes + std::min(bytes, sample.inflated_bytes());
    uint64_t& lowered = it->second.vm.lowered_bytes;
    lowered -= std::min(lowered, bytes);
  }
  return SetTarget(id, target);
}

std::optional<BalloonFigures> Balloons::figures(const std::string& id) const {
  MutexLock lock(mutex_);
  const auto it = guests_.find(id);
  if (it == guests_.end() || !it->second.sampled) return std::nullopt;
  const Guest& guest = it->second;
  return BalloonFigures{guest.sample.base_bytes, guest.sample.inflated_bytes(),
                        guest.used.empty() ? guest.sample.base_bytes : FloorLocked(guest),
                        guest.uncooperative};
}

}  // namespace lamina::node
