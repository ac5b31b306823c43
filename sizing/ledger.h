// The node's memory ledger: who was promised how much. Rules only; laminad gives it a journal and a clock.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"

namespace lamina::sizing {

struct LedgerEntry {
  std::string id;
  uint64_t generation = 0;
  uint64_t target_bytes = 0;    // what was promised
  uint64_t resident_bytes = 0;  // what the VM was last seen to hold
  bool bound = false;           // a VM process exists
  // What the entry counts for; promise and residence are never added together.
  uint64_t counted_bytes() const { return target_bytes > resident_bytes ? target_bytes : resident_bytes; }
};

struct LedgerTotals {
  uint64_t capacity_bytes = 0, claimed_bytes = 0, resident_bytes = 0, available_bytes = 0;
  size_t entries = 0;
};

// Thread-safe; each call is one critical section, so an answer is definite.
class Ledger {
 public:
  explicit Ledger(uint64_t capacity_bytes) : capacity_(capacity_bytes) {}

  // A new promise, or the existing one again when `id` holds exactly `bytes` (repeated call). Returns the
  // generation. ResourceExhausted with the numbers; AlreadyExists when `id` holds another size;
  // InvalidArgument for 0 bytes; Unavailable while the node is under pressure (SetPressure).
  absl::StatusOr<uint64_t> Claim(const std::string& id, uint64_t bytes);
  // An entry known from before a restart; may overcommit, because it exists already. Generations go on from
  // the highest seen.
  void Restore(const LedgerEntry& entry);
  // A VM process now stands behind the entry. NotFound / FailedPrecondition for an unknown id or another
  // generation.
  absl::Status Bind(const std::string& id, uint64_t generation);
  // Growth needs availability (ResourceExhausted changes nothing); shrinking always works.
  absl::Status Retarget(const std::string& id, uint64_t generation, uint64_t bytes);
  // What the VM was seen to hold. Unknown ids are ignored: the VM may just have gone.
  void SetResident(const std::string& id, uint64_t bytes);
  // Idempotent: an unknown id, or a generation that is not the current one (0: any), changes nothing. True
  // when something was released.
  bool Release(const std::string& id, uint64_t generation);

  // A non-empty reason stops granting until it is cleared.
  void SetPressure(std::string reason);
  std::string pressure() const;

  LedgerTotals totals() const;
  std::vector<LedgerEntry> entries() const;  // by id

 private:
  uint64_t AvailableLocked() const REQUIRES(mutex_) {
    return claimed_ < capacity_ ? capacity_ - claimed_ : 0;
  }

  const uint64_t capacity_;
  mutable Mutex mutex_;
  std::map<std::string, LedgerEntry> entries_ GUARDED_BY(mutex_);
  uint64_t claimed_ GUARDED_BY(mutex_) = 0;  // sum of counted_bytes()
  uint64_t next_generation_ GUARDED_BY(mutex_) = 1;
  std::string pressure_ GUARDED_BY(mutex_);
};

}  // namespace lamina::sizing
