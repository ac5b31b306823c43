#include "node/balloons.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/status.h"
#include "base/units.h"

namespace lamina::node {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr size_t kThreads = 32;  // one for each VM that hangs, until there are so many
// For a look at all: QEMU's two seconds for a command, and as long again as a busy node may need.
constexpr milliseconds kLookTime{2500};
constexpr milliseconds kClosingTime{300};  // of a round, twice; within a claim's last second
constexpr milliseconds kLookEvery{50};
constexpr seconds kPassOverAfter{5};
constexpr seconds kUncooperativeAfter{20};
constexpr int64_t kFreshSeconds = 3 * vmm::kBalloonStatsSeconds;  // an answer may be late on a busy node
constexpr int64_t kUsedOverSeconds = 60;

}  // namespace

Balloons::Balloons(const Config::Memory& config, Host& host, const Clock& clock)
    : config_(config), host_(host), clock_(clock), threads_(kThreads) {}

std::string ListNames(const std::vector<std::string>& ids) {
  constexpr size_t kMost = 8;
  const size_t shown = std::min(ids.size(), kMost);
  std::string text = fmt::format("{}", fmt::join(ids.begin(), ids.begin() + static_cast<long>(shown), ", "));
  if (ids.size() > shown) text += fmt::format(" and {} more", ids.size() - shown);
  return text;
}

absl::StatusOr<vmm::BalloonSample> Balloons::SampleOf(const std::string& runtime_dir,
                                                      std::shared_ptr<vmm::Balloon>& balloon) {
  if (balloon == nullptr) {
    ASSIGN_OR_RETURN(balloon, host_.OpenBalloon(runtime_dir));
  }
  return balloon->Sample();
}

void Balloons::Look(const std::string& id, uint64_t look) {
  std::shared_ptr<vmm::Balloon> balloon;
  std::string runtime_dir;
  int64_t pid = 0;
  {
    MutexLock lock(mutex_);
    auto it = guests_.find(id);
    // One look at a time; who hangs in the one before keeps no second thread.
    while (it != guests_.end() && it->second.busy && !it->second.silent) {
      look_ended_.Wait(mutex_);
      it = guests_.find(id);
    }
    if (it == guests_.end() || std::exchange(it->second.busy, true)) return;
    balloon = it->second.balloon;
    runtime_dir = it->second.vm.runtime_dir;
    pid = it->second.vm.vmm_pid;
  }
  const absl::StatusOr<vmm::BalloonSample> sample = SampleOf(runtime_dir, balloon);
  MutexLock lock(mutex_);
  look_ended_.NotifyAll();
  const auto it = guests_.find(id);
  if (it == guests_.end() || it->second.vm.vmm_pid != pid) return;  // another VM under the same name
  Guest& guest = it->second;
  guest.busy = false;
  if (!sample.ok()) {
    guest.balloon = nullptr;  // connected to anew
    SilentLocked(guest, Message(sample.status()));
    return;
  }
  guest.balloon = balloon;
  guest.sample = *sample;
  guest.sampled = true;
  guest.silent = false;
  guest.answered = std::max(guest.answered, look);
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
}

void Balloons::SilentLocked(Guest& guest, const std::string& why) {
  guest.sampled = false;
  if (!std::exchange(guest.silent, true)) LogWarning("balloon: sandbox {}: {}", guest.vm.id, why);
}

std::set<std::string> Balloons::LookAt(const std::vector<std::string>& ids, milliseconds within) {
  uint64_t look = 0;
  std::vector<SideBySide::Job> jobs;
  {
    MutexLock lock(mutex_);
    look = ++looks_;
    // Those that answered the last time first: they take no time, and are not kept from it by the others.
    for (const bool silent : {false, true}) {
      for (const std::string& id : ids) {
        const auto it = guests_.find(id);
        if (it != guests_.end() && it->second.silent == silent)
          jobs.emplace_back([this, id, look] { Look(id, look); });
      }
    }
  }
  const absl::Status ran = threads_.Run(std::move(jobs), within);
  std::set<std::string> answered;
  MutexLock lock(mutex_);
  for (const std::string& id : ids) {
    const auto it = guests_.find(id);
    if (it == guests_.end()) continue;
    if (it->second.answered == look) {
      answered.insert(id);
    } else {
      SilentLocked(it->second, ran.ok() ? fmt::format("its QEMU has not answered for {} ms", within.count())
                                        : Message(ran));
    }
  }
  return answered;
}

std::set<std::string> Balloons::SetTargets(const std::map<std::string, uint64_t>& targets,
                                           milliseconds within) {
  struct Took {
    Mutex mutex;
    std::set<std::string> ids GUARDED_BY(mutex);
  };
  const auto took = std::make_shared<Took>();
  std::vector<SideBySide::Job> jobs;
  {
    MutexLock lock(mutex_);
    for (const auto& [id, bytes] : targets) {
      const auto it = guests_.find(id);
      if (it == guests_.end() || it->second.balloon == nullptr) continue;
      jobs.emplace_back([took, id = id, bytes = bytes, balloon = it->second.balloon] {
        const absl::Status status = balloon->SetTarget(bytes);
        if (!status.ok()) {
          LogWarning("balloon: sandbox {}: {}", id, Message(status));
          return;
        }
        MutexLock done(took->mutex);
        took->ids.insert(id);
      });
    }
  }
  if (const absl::Status ran = threads_.Run(std::move(jobs), within); !ran.ok())
    LogWarning("balloon: {}", Message(ran));
  MutexLock lock(took->mutex);
  return took->ids;
}

void Balloons::Update(const std::vector<BalloonVm>& vms) {
  std::vector<std::string> ids;
  {
    MutexLock lock(mutex_);
    std::map<std::string, Guest> kept;
    for (const BalloonVm& vm : vms) {
      ids.push_back(vm.id);
      Guest guest;
      if (const auto it = guests_.find(vm.id); it != guests_.end() && it->second.vm.vmm_pid == vm.vmm_pid)
        guest = std::move(it->second);  // otherwise another VM under the same name
      const std::string runtime_dir = vm.runtime_dir.empty() ? guest.vm.runtime_dir : vm.runtime_dir;
      guest.vm = vm;
      guest.vm.runtime_dir = runtime_dir;
      kept[vm.id] = std::move(guest);
    }
    guests_ = std::move(kept);
  }
  LookAt(ids, kLookTime);
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
  if (status.ok()) return status;
  std::vector<std::string> unwilling, silent;
  for (const auto& [id, guest] : guests_) {
    if (guest.uncooperative) unwilling.push_back(id);
    if (guest.silent) silent.push_back(id);
  }
  std::string text = Message(status);
  if (!unwilling.empty()) text += "; not asked, because they did not cooperate: " + ListNames(unwilling);
  if (!silent.empty()) text += "; their QEMU does not answer: " + ListNames(silent);
  return absl::Status(status.code(), text);
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

milliseconds Balloons::Left(MonotonicTime deadline, milliseconds most) const {
  return std::clamp(std::chrono::duration_cast<milliseconds>(deadline - clock_.Now()), kClosingTime, most);
}

absl::Status Balloons::Ask(uint64_t need, const std::string& taker, MonotonicTime deadline,
                           std::map<std::string, Asked>& asked) {
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
  std::map<std::string, uint64_t> targets;
  for (const auto& [id, give] : gives) {
    Asked& one = asked[id];
    if (one.from == 0) one.from = one.last = actual[id];
    targets[id] = one.target = actual[id] - give;
    one.progress = clock_.Now();
  }
  const std::set<std::string> took = SetTargets(targets, Left(deadline, kLookTime));
  for (const auto& [id, target] : targets) asked[id].passed_over |= took.count(id) == 0;
  return absl::OkStatus();
}

BalloonRound Balloons::Lower(uint64_t need, const std::string& taker, MonotonicTime deadline) {
  BalloonRound round;
  std::vector<std::string> ids, answering;
  {
    MutexLock lock(mutex_);
    for (const auto& [id, guest] : guests_) {
      ids.push_back(id);
      if (!guest.silent) answering.push_back(id);  // the others are asked by Update
    }
  }
  LookAt(answering, Left(deadline, kLookTime));
  std::map<std::string, uint64_t> counted_before;
  {
    MutexLock lock(mutex_);
    for (const auto& [id, guest] : guests_) {
      if (guest.sampled) counted_before[id] = CountedLocked(guest);
    }
  }
  std::map<std::string, Asked> asked;
  round.status = Ask(need, taker, deadline, asked);
  while (round.status.ok()) {
    uint64_t freed = 0, promised = 0;  // promised: what those still asked have not brought yet
    bool replan = false;
    std::vector<std::string> looked_at;
    for (const auto& [id, one] : asked) {
      if (!one.silent) looked_at.push_back(id);
    }
    const std::set<std::string> answered = LookAt(looked_at, Left(deadline, kLookTime));
    for (auto& [id, one] : asked) {
      MutexLock lock(mutex_);
      const auto it = guests_.find(id);
      if (it == guests_.end() || answered.count(id) == 0) {
        replan |= !one.passed_over;
        one.passed_over = one.silent = true;
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
      std::map<std::string, uint64_t> keep;  // what those passed over have not given
      for (const auto& [id, one] : asked) {
        if (one.passed_over && !one.silent) keep[id] = one.last;
      }
      SetTargets(keep, Left(deadline, kLookTime));
      const uint64_t missing = need - freed;
      if (missing > promised) round.status = Ask(missing - promised, taker, deadline, asked);
      continue;
    }
    host_.Nap(kLookEvery);
  }
  for (const auto& [id, one] : asked) {
    if (one.passed_over && !one.silent) round.passed_over.push_back(id);
    MutexLock lock(mutex_);
    const auto it = guests_.find(id);
    if (it != guests_.end() && !one.passed_over && it->second.sample.actual_bytes > one.target)
      StalledLocked(it->second, one);
  }
  // Those whose QEMU does not answer too: it may take the word later.
  std::map<std::string, uint64_t> last;
  std::vector<std::string> gave;
  for (const auto& [id, one] : asked) {
    last[id] = round.status.ok() ? one.last : one.from;
    if (!one.silent) gave.push_back(id);
  }
  SetTargets(last, kClosingTime);
  const std::set<std::string> answered =
      round.status.ok() ? LookAt(gave, kClosingTime) : std::set<std::string>();
  MutexLock lock(mutex_);
  for (const std::string& id : ids) {
    const auto it = guests_.find(id);
    if (it == guests_.end()) continue;
    if (it->second.uncooperative) round.uncooperative.push_back(id);
    if (it->second.silent && id != taker) round.silent.push_back(id);
    if (answered.count(id) != 0) round.inflated[id] = it->second.sample.inflated_bytes();
  }
  return round;
}

void Balloons::Raise(const std::map<std::string, uint64_t>& bytes) {
  std::vector<std::string> ids;
  ids.reserve(bytes.size());
  for (const auto& [id, more] : bytes) ids.push_back(id);
  const std::set<std::string> answered = LookAt(ids, kLookTime);
  std::map<std::string, uint64_t> targets;
  {
    MutexLock lock(mutex_);
    for (const std::string& id : answered) {
      const auto it = guests_.find(id);
      if (it == guests_.end()) continue;
      const vmm::BalloonSample& sample = it->second.sample;
      const uint64_t more = bytes.at(id);
      targets[id] = sample.actual_bytes + std::min(more, sample.inflated_bytes());
      uint64_t& lowered = it->second.vm.lowered_bytes;
      lowered -= std::min(lowered, more);
    }
  }
  SetTargets(targets, kLookTime);
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
