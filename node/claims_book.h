// Who holds which claim: the records, the ledger that counts them, the journal that keeps them.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "base/file_system.h"
#include "base/mutex.h"
#include "node/claims_journal.h"
#include "persist/sandbox_state.h"
#include "proto/claims_journal.pb.h"
#include "sizing/ledger.h"

namespace lamina::node {

sizing::NumaNodes NodesOf(const laminad::v1::ClaimRequest& claim);

// Thread-safe. A change that is durable when it returns OK is taken back when it could not be made so. No
// lock is held while the journal is written.
class ClaimsBook {
 public:
  using Record = laminad::v1::ClaimRecord;

  ClaimsBook(uint64_t capacity_bytes, const sizing::NodeBytes& nodes) : ledger_(capacity_bytes, nodes) {}
  // Reads the journal at `path`; the ledger then counts what it says, but for claims of other boots than
  // `boot_id`, which are gone. Before anything else. Errors: as ClaimsJournal::Open.
  absl::Status Restore(FileSystem& fs, const std::string& path, const std::string& boot_id);

  // The caller claims from it and then says so with Grant, or gives it back.
  sizing::Ledger& ledger() { return ledger_; }
  const sizing::Ledger& ledger() const { return ledger_; }
  ClaimRecords All() const;
  std::optional<Record> Find(const std::string& id) const;
  // NotFound: no claim; FailedPrecondition: of another generation.
  absl::StatusOr<Record> Of(const std::string& id, uint64_t generation) const;

  // Writes down what the ledger has granted under `generation`. `granted_unix_nanos`: a new grant, 0: a
  // repetition. A new one that cannot be made durable is none: its memory is free again.
  absl::Status Grant(const laminad::v1::ClaimRequest& request, uint64_t generation,
                     int64_t granted_unix_nanos);
  // Changes a record, not its bytes' count in the ledger; durable. `undo` (may be null) takes it back.
  absl::Status Change(const std::string& id, uint64_t generation, const std::function<void(Record&)>& change,
                      const std::function<void(Record&)>& undo);
  // The claim's size, in ledger and record; Change writes it down. Growth needs room.
  absl::Status SetBytes(const std::string& id, uint64_t generation, uint64_t bytes);
  // A balloon holds `bytes` of the claim: durable, then free for others. A sandbox that has gone: OK.
  absl::Status Lower(const std::string& id, uint64_t bytes);
  // `bytes` of what its balloon took are the sandbox's again: taken, then durable. NotFound: it has gone.
  absl::Status Raise(const std::string& id, uint64_t bytes);
  // The sandbox has nothing any more; durable. OK where it had nothing.
  absl::Status Drop(const std::string& id);

  struct Adoption {
    std::string state_path;
    bool known = false;     // the sandbox had a claim when its state was read: one gone since stays gone
    bool at_start = false;  // the larger claim of both counts; later what was granted holds
  };
  // A VM lives, says its sandbox's state: recorded as what was lost, or, where it is known, as started.
  void Adopt(const persist::SandboxState& state, const Adoption& how);
  // Whether claims can be made durable; where the last write has failed, the journal is tried anew, whole.
  absl::Status Repair() { return journal_->Repair(); }
  // Why the last write failed; OK: it did not.
  absl::Status state() const { return journal_->state(); }

 private:
  absl::Status CheckLocked(const std::string& id, uint64_t generation) const REQUIRES(mutex_);
  // What to wait for, without the mutex, until the sandbox's record is durable; one without a record is
  // written down as gone.
  ClaimsJournal::Ticket WriteLocked(const std::string& id) REQUIRES(mutex_);

  sizing::Ledger ledger_;
  std::string boot_id_;  // set once, by Restore, as the next
  std::unique_ptr<ClaimsJournal> journal_;
  mutable Mutex mutex_;  // before the ledger's and the journal's
  ClaimRecords records_ GUARDED_BY(mutex_);
};

}  // namespace lamina::node
