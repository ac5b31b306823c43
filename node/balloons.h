// The balloons of the node's VMs: what each guest could give, and rounds that take it. What the ledger makes
// of it is the caller's. docs/ledger.md has the rules.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/config.h"
#include "base/mutex.h"
#include "node/host.h"
#include "sizing/balloon_plan.h"

namespace lamina::node {

// A VM as the ledger knows it.
struct BalloonVm {
  std::string id;
  std::string runtime_dir;  // empty: as the last time
  int64_t vmm_pid = 0;
  uint64_t claim_bytes = 0;    // what a balloon took counted in
  uint64_t lowered_bytes = 0;  // what it took, as the ledger has it
};

struct BalloonFigures {
  uint64_t base_bytes = 0, inflated_bytes = 0, floor_bytes = 0;
  bool uncooperative = false;
};

struct BalloonRound {
  absl::Status status;                       // OK: what was needed is free. Otherwise the guests have it back
  std::map<std::string, uint64_t> inflated;  // what the balloons of those who gave hold now
  std::vector<std::string> passed_over;      // made no progress for 5 s
  std::vector<std::string> uncooperative;    // none for 20 s, over all rounds; not asked any more
};

// Thread-safe.
class Balloons {
 public:
  Balloons(const Config::Memory& config, Host& host, const Clock& clock)
      : config_(config), host_(host), clock_(clock) {}

  // These VMs run: connects to the new, forgets those that are gone, asks all how they are. One that does not
  // answer is asked again the next time.
  void Update(const std::vector<BalloonVm>& vms);
  // What is known already says that a round could (OK) or could not free `need` bytes for `taker`, who gives
  // nothing itself. Asks nobody.
  absl::Status CouldGive(uint64_t need, const std::string& taker) const;
  // Lowers guests until `need` bytes less are counted and not resident either, or until `deadline`. Only one
  // runs at a time; the caller holds `Turn` while it makes use of the result.
  BalloonRound Lower(uint64_t need, const std::string& taker, MonotonicTime deadline);
  // Gives a guest `bytes` of what its balloon holds back.
  absl::Status Raise(const std::string& id, uint64_t bytes);

  std::optional<BalloonFigures> figures(const std::string& id) const;
  // For one round and what follows from it.
  Mutex& turn() { return turn_; }

 private:
  struct Guest {
    BalloonVm vm;
    std::shared_ptr<vmm::Balloon> balloon;
    vmm::BalloonSample sample;
    bool sampled = false;
    std::map<int64_t, uint64_t> used;  // of the last minute: second -> bytes
    std::chrono::milliseconds stalled{0};
    bool uncooperative = false;
  };
  struct Asked {
    uint64_t from = 0, target = 0, last = 0;
    MonotonicTime progress;
    bool passed_over = false;
  };

  // Asks the guest of `id` anew, without the lock.
  absl::Status Sample(const std::string& id);
  uint64_t FloorLocked(const Guest& guest) const REQUIRES(mutex_);
  // 0 where it has no fresh statistics, or does not cooperate.
  uint64_t CanGiveLocked(const Guest& guest) const REQUIRES(mutex_);
  std::vector<sizing::BalloonGuest> CandidatesLocked(const std::string& taker) const REQUIRES(mutex_);
  uint64_t CountedLocked(const Guest& guest) const REQUIRES(mutex_);
  absl::Status SetTarget(const std::string& id, uint64_t bytes);
  // The time without progress is over for this round.
  void StalledLocked(Guest& guest, const Asked& one) REQUIRES(mutex_);
  // Asks those not asked yet for `need` in all.
  absl::Status Ask(uint64_t need, const std::string& taker, std::map<std::string, Asked>& asked);

  const Config::Memory config_;
  Host& host_;
  const Clock& clock_;
  Mutex turn_;  // before mutex_
  mutable Mutex mutex_;
  std::map<std::string, Guest> guests_ GUARDED_BY(mutex_);
};

}  // namespace lamina::node
