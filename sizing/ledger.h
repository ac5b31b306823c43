// The node's memory ledger: who was promised how much. Rules only; laminad gives it a journal and a clock.
// docs/ledger.md has the rules' edges.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "sizing/numa.h"

namespace lamina::sizing {

struct LedgerEntry {
  std::string id;
  uint64_t generation = 0;
  uint64_t target_bytes = 0;    // what was promised
  uint64_t resident_bytes = 0;  // what it populated, or was last seen to hold
  bool bound = false;           // a VM process exists
  bool dying = false;           // failed or released, and its process is not seen dead yet
  std::string client{};         // who reserved it
  NumaNodes nodes{};            // what it counts for lies on these, evenly; empty: anywhere
  // What the entry counts for; promise and residence are never added together.
  uint64_t counted_bytes() const { return target_bytes > resident_bytes ? target_bytes : resident_bytes; }
  uint64_t outstanding_bytes() const { return counted_bytes() - resident_bytes; }
};

// Of a NUMA node. Available: what is left of it as long as the whole has as much.
struct NodeTotals {
  uint64_t capacity_bytes = 0, claimed_bytes = 0, available_bytes = 0;
};

struct LedgerTotals {  // sums that do not fit 64 bits stand at 2^64-1
  uint64_t capacity_bytes = 0, claimed_bytes = 0, resident_bytes = 0, available_bytes = 0;
  size_t entries = 0;
  std::string pressure;  // why nothing is granted; empty: it is
  std::map<uint32_t, NodeTotals> nodes;
};

// How a build ended.
enum class BuildEnd {
  kWell,    // what was not populated is released
  kFailed,  // the entry is dying, and counts as before until it is dead
};

struct RangeGrant {
  uint64_t generation = 0, bytes = 0;
};

// Thread-safe; each call is one critical section, so an answer is definite. Errors, where nothing has
// changed: ResourceExhausted (it does not fit, with the numbers), AlreadyExists (the id has an entry),
// NotFound, FailedPrecondition (the entry is dying, or the generation is not its own; generation 0: whichever
// it is), Unavailable (pressure), InvalidArgument (empty id, 0 bytes, a range upside down, an unknown NUMA
// node). What an entry with a NUMA set counts for must fit each of its nodes as well as the whole.
class Ledger {
 public:
  // `nodes`: what each NUMA node of the capacity has, for ClaimNodes.
  explicit Ledger(uint64_t capacity_bytes, const NodeBytes& nodes = {});

  // A new promise; gives its generation, which no other claim has had.
  absl::StatusOr<uint64_t> Claim(const std::string& id, uint64_t bytes, const std::string& client = "");
  // As much as fits, from `min` to `max`.
  absl::StatusOr<RangeGrant> ClaimRange(const std::string& id, uint64_t min, uint64_t max,
                                        const std::string& client = "");
  // `bytes` from these NUMA nodes, as much from each: granted whole or not at all. The only claim that `id`
  // may hold already, until a process stands behind it (AlreadyExists): the new set replaces the old.
  absl::StatusOr<uint64_t> ClaimNodes(const std::string& id, uint64_t bytes, const NumaNodes& nodes,
                                      const std::string& client = "");
  // An entry known from before a restart. May overcommit, because it exists already; where `id` is known too,
  // the larger of both counts, and `entry`'s nodes where it names any. Generations go on from the highest.
  void Restore(const LedgerEntry& entry);
  // `client` starts anew: what it had reserved and neither bound nor populated is released. Gives those ids.
  std::vector<std::string> Login(const std::string& client);

  // A VM process now stands behind the entry.
  absl::Status Bind(const std::string& id, uint64_t generation);
  // `bytes` more are resident: within the promise always, beyond it from what is available.
  absl::Status Populate(const std::string& id, uint64_t bytes);
  // The build is over. Repeatable.
  absl::Status EndBuild(const std::string& id, BuildEnd end);
  // Its process was seen dead: the entry is gone.
  absl::Status Dead(const std::string& id, uint64_t generation = 0);
  // Growth needs availability; shrinking always works, and frees what is not resident.
  absl::Status Retarget(const std::string& id, uint64_t generation, uint64_t bytes);
  // Frees what was never populated, at once. An entry with nothing populated and no process behind it is
  // gone; any other is dying. Idempotent: an unknown id or a stale generation changes nothing. True: it did
  // something.
  bool Release(const std::string& id, uint64_t generation = 0);
  // What the VM was seen to hold. Unknown ids are ignored: the VM may just have gone.
  void SetResident(const std::string& id, uint64_t bytes);

  // How the node was last seen. A non-empty `pressure` stops new claims and growth until it is cleared.
  // `left`: of NUMA nodes, which promise no set more than that (Unavailable); those that it does not name
  // stay, unknown ones are ignored. At first, and with UINT64_MAX, a node is not watched.
  void Watch(std::string pressure, const NodeBytes& left = {});

  LedgerTotals totals() const;
  std::vector<LedgerEntry> entries() const;  // by id

 private:
  using Sum = unsigned __int128;  // of any number of 64-bit sizes
  struct Node {
    uint64_t capacity = 0, left = UINT64_MAX;
    Sum claimed = 0, resident = 0;
    uint64_t available() const { return claimed < capacity ? capacity - static_cast<uint64_t>(claimed) : 0; }
  };

  uint64_t AvailableLocked() const REQUIRES(mutex_) {
    return claimed_ < capacity_ ? capacity_ - static_cast<uint64_t>(claimed_) : 0;
  }
  // Whether the NUMA nodes, and then the whole, have what `after` counts for more than `before`; `what`
  // begins the refusal.
  absl::Status RoomLocked(const LedgerEntry& before, const LedgerEntry& after, const std::string& what) const
      REQUIRES(mutex_);
  // The entry in `*found`; an error when there is none of this generation, or it is dying.
  absl::Status FindLocked(const std::string& id, uint64_t generation, LedgerEntry** found) REQUIRES(mutex_);
  // Takes the entry out of the sums, or puts it in.
  void CountLocked(const LedgerEntry& entry, bool in) REQUIRES(mutex_);
  void EraseLocked(const std::string& id) REQUIRES(mutex_);

  const uint64_t capacity_;
  mutable Mutex mutex_;
  std::unordered_map<std::string, LedgerEntry> entries_ GUARDED_BY(mutex_);
  std::map<uint32_t, Node> nodes_ GUARDED_BY(mutex_);
  Sum claimed_ GUARDED_BY(mutex_) = 0;  // of counted_bytes()
  Sum resident_ GUARDED_BY(mutex_) = 0;
  uint64_t next_generation_ GUARDED_BY(mutex_) = 1;
  std::string pressure_ GUARDED_BY(mutex_);
};

}  // namespace lamina::sizing
