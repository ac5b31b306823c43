// The balloons of the node's VMs: what each guest could give, and rounds that take it. What the ledger makes
// of it is the caller's. docs/ledger.md has the rules.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/config.h"
#include "base/mutex.h"
#include "node/host.h"
#include "node/side_by_side.h"
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
  std::vector<std::string> silent;           // their QEMU did not answer
};

// "a, b", and how many more where they are many.
std::string ListNames(const std::vector<std::string>& ids);

// Thread-safe. VMs are asked side by side: one whose QEMU hangs delays nobody, and no call takes longer than
// it says here.
class Balloons {
 public:
  Balloons(const Config::Memory& config, Host& host, const Clock& clock);

  // These VMs run: connects to the new, forgets those that are gone, asks all how they are; 2.5 s at most.
  // One that does not answer is asked again the next time.
  void Update(const std::vector<BalloonVm>& vms);
  // What is known already says that a round could (OK) or could not free `need` bytes for `taker`, who gives
  // nothing itself. Asks nobody.
  absl::Status CouldGive(uint64_t need, const std::string& taker) const;
  // Lowers guests until `need` bytes less are counted and not resident either, or until `deadline`; a
  // second later at most it has also given back what was in vain. Only one runs at a time; the caller holds
  // `turn` while it makes use of the result.
  BalloonRound Lower(uint64_t need, const std::string& taker, MonotonicTime deadline);
  // Gives each of these guests so many bytes of what its balloon holds back; 5 s at most. Those that do not
  // answer have them the next time.
  void Raise(const std::map<std::string, uint64_t>& bytes);

  std::optional<BalloonFigures> figures(const std::string& id) const;
  // For one round and what follows from it.
  Mutex& turn() { return turn_; }

 private:
  struct Guest {
    BalloonVm vm;
    std::shared_ptr<vmm::Balloon> balloon;
    vmm::BalloonSample sample;
    bool sampled = false;
    bool busy = false;                 // somebody is looking, or hangs in it
    bool silent = false;               // the last look had no answer
    uint64_t answered = 0;             // the last look that had one
    std::map<int64_t, uint64_t> used;  // of the last minute: second -> bytes
    std::chrono::milliseconds stalled{0};
    bool uncooperative = false;
  };
  struct Asked {
    uint64_t from = 0, target = 0, last = 0;
    MonotonicTime progress;
    bool passed_over = false;
    bool silent = false;  // passed over, because its QEMU does not answer
  };

  // Connects where `balloon` is null.
  absl::StatusOr<vmm::BalloonSample> SampleOf(const std::string& runtime_dir,
                                              std::shared_ptr<vmm::Balloon>& balloon);
  // Asks one guest anew, on a thread of its own.
  void Look(const std::string& id, uint64_t look);
  // Asks these, side by side; gives those that answered within the time.
  std::set<std::string> LookAt(const std::vector<std::string>& ids, std::chrono::milliseconds within);
  // The same for new targets.
  std::set<std::string> SetTargets(const std::map<std::string, uint64_t>& targets,
                                   std::chrono::milliseconds within);
  void SilentLocked(Guest& guest, const std::string& why) REQUIRES(mutex_);
  // Until the deadline, as far as it is no more than `most`.
  std::chrono::milliseconds Left(MonotonicTime deadline, std::chrono::milliseconds most) const;
  uint64_t FloorLocked(const Guest& guest) const REQUIRES(mutex_);
  // 0 where it has no fresh statistics, or does not cooperate.
  uint64_t CanGiveLocked(const Guest& guest) const REQUIRES(mutex_);
  std::vector<sizing::BalloonGuest> CandidatesLocked(const std::string& taker) const REQUIRES(mutex_);
  uint64_t CountedLocked(const Guest& guest) const REQUIRES(mutex_);
  // The time without progress is over for this round.
  void StalledLocked(Guest& guest, const Asked& one) REQUIRES(mutex_);
  // Asks those not asked yet for `need` in all.
  absl::Status Ask(uint64_t need, const std::string& taker, MonotonicTime deadline,
                   std::map<std::string, Asked>& asked);

  const Config::Memory config_;
  Host& host_;
  const Clock& clock_;
  Mutex turn_;  // before mutex_
  mutable Mutex mutex_;
  std::map<std::string, Guest> guests_ GUARDED_BY(mutex_);
  CondVar look_ended_;
  uint64_t looks_ GUARDED_BY(mutex_) = 0;
  SideBySide threads_;  // last: its end waits for those who use the others
};

}  // namespace lamina::node
