#include "node/claims_book.h"

#include <algorithm>
#include <vector>

#include "base/log.h"
#include "base/printable.h"
#include "base/status.h"
#include "node/claim_text.h"

namespace lamina::node {
namespace {

using Record = laminad::v1::ClaimRecord;

// What the ledger counts as promised: the claim, less what a balloon took of it.
uint64_t TargetOf(const Record& record) {
  const uint64_t bytes = record.claim().bytes();
  return bytes > record.lowered_bytes() ? bytes - record.lowered_bytes() : std::min<uint64_t>(bytes, 1);
}

sizing::LedgerEntry EntryOf(const Record& record) {
  sizing::LedgerEntry entry;
  entry.id = record.claim().sandbox_id();
  entry.generation = record.generation();
  entry.target_bytes = TargetOf(record);
  entry.bound = record.vmm_pid() != 0;
  entry.nodes = NodesOf(record.claim());
  return entry;
}

absl::Status NoClaim(const std::string& id) {
  return MakeStatus(absl::StatusCode::kNotFound, "sandbox {} has no claim", id);
}

}  // namespace

sizing::NumaNodes NodesOf(const laminad::v1::ClaimRequest& claim) {
  return {claim.numa_nodes().begin(), claim.numa_nodes().end()};
}

absl::Status ClaimsBook::Restore(FileSystem& fs, const std::string& path, const std::string& boot_id) {
  boot_id_ = boot_id;
  ClaimsJournal::Ticket ticket;
  {
    MutexLock lock(mutex_);
    ASSIGN_OR_RETURN(journal_, ClaimsJournal::Open(fs, path, records_));
    std::vector<std::string> gone;
    for (const auto& [id, record] : records_) {
      if (!boot_id.empty() && !record.boot_id().empty() && record.boot_id() != boot_id) {
        gone.push_back(id);
      } else {
        ledger_.Restore(EntryOf(record));
      }
    }
    for (const std::string& id : gone) {
      LogInfo("sandbox {}: the host has booted since; its claim is dropped", id);
      records_.erase(id);
      ticket = WriteLocked(id);
    }
  }
  // Where it cannot be written they are dropped again after the next start.
  if (ticket != nullptr) journal_->Wait(ticket).IgnoreError();
  return absl::OkStatus();
}

ClaimRecords ClaimsBook::All() const {
  MutexLock lock(mutex_);
  return records_;
}

std::optional<Record> ClaimsBook::Find(const std::string& id) const {
  MutexLock lock(mutex_);
  const auto it = records_.find(id);
  if (it == records_.end()) return std::nullopt;
  return it->second;
}

absl::StatusOr<Record> ClaimsBook::Of(const std::string& id, uint64_t generation) const {
  MutexLock lock(mutex_);
  RETURN_IF_ERROR(CheckLocked(id, generation));
  return records_.at(id);
}

absl::Status ClaimsBook::CheckLocked(const std::string& id, uint64_t generation) const {
  const auto it = records_.find(id);
  if (it == records_.end()) return NoClaim(id);
  if (it->second.generation() == generation) return absl::OkStatus();
  return MakeStatus(absl::StatusCode::kFailedPrecondition,
                    "sandbox {}: claim generation {} is stale, {} is current", id, generation,
                    it->second.generation());
}

ClaimsJournal::Ticket ClaimsBook::WriteLocked(const std::string& id) {
  if (const auto it = records_.find(id); it != records_.end()) return journal_->Add(it->second);
  Record gone;
  gone.mutable_claim()->set_sandbox_id(id);
  gone.set_removed(true);
  return journal_->Add(gone);
}

absl::Status ClaimsBook::Grant(const laminad::v1::ClaimRequest& request, uint64_t generation,
                               int64_t granted_unix_nanos) {
  const std::string& id = request.sandbox_id();
  ClaimsJournal::Ticket ticket;
  bool known = false;
  {
    MutexLock lock(mutex_);
    known = records_.count(id) != 0;
    Record& record = records_[id];
    *record.mutable_claim() = request;
    record.set_generation(generation);
    record.set_boot_id(boot_id_);
    if (granted_unix_nanos != 0) record.set_claimed_unix_nanos(granted_unix_nanos);
    ticket = WriteLocked(id);
  }
  const absl::Status saved = journal_->Wait(ticket);
  if (saved.ok() || granted_unix_nanos == 0) return saved;
  MutexLock lock(mutex_);
  records_.erase(id);
  ledger_.Release(id, generation);
  if (known) WriteLocked(id);  // the set that this one replaced is gone as well
  return saved;
}

absl::Status ClaimsBook::Change(const std::string& id, uint64_t generation,
                                const std::function<void(Record&)>& change,
                                const std::function<void(Record&)>& undo) {
  ClaimsJournal::Ticket ticket;
  {
    MutexLock lock(mutex_);
    RETURN_IF_ERROR(CheckLocked(id, generation));
    change(records_[id]);
    ticket = WriteLocked(id);
  }
  const absl::Status saved = journal_->Wait(ticket);
  if (saved.ok() || undo == nullptr) return saved;
  MutexLock lock(mutex_);
  if (CheckLocked(id, generation).ok()) undo(records_[id]);
  return saved;
}

absl::Status ClaimsBook::SetBytes(const std::string& id, uint64_t generation, uint64_t bytes) {
  MutexLock lock(mutex_);
  RETURN_IF_ERROR(CheckLocked(id, generation));
  Record record = records_[id];
  record.mutable_claim()->set_bytes(bytes);
  RETURN_IF_ERROR(ledger_.Retarget(id, generation, TargetOf(record)));
  records_[id].mutable_claim()->set_bytes(bytes);
  return absl::OkStatus();
}

absl::Status ClaimsBook::Lower(const std::string& id, uint64_t bytes) {
  ClaimsJournal::Ticket ticket;
  uint64_t before = 0;
  {
    MutexLock lock(mutex_);
    const auto it = records_.find(id);
    if (it == records_.end()) return absl::OkStatus();
    before = it->second.lowered_bytes();
    it->second.set_lowered_bytes(bytes);
    ticket = WriteLocked(id);
  }
  const absl::Status saved = journal_->Wait(ticket);
  MutexLock lock(mutex_);
  const auto it = records_.find(id);
  if (it == records_.end()) return saved;
  if (!saved.ok()) {
    it->second.set_lowered_bytes(before);
    return saved;
  }
  return ledger_.Retarget(id, it->second.generation(), TargetOf(it->second));
}

absl::Status ClaimsBook::Raise(const std::string& id, uint64_t bytes) {
  ClaimsJournal::Ticket ticket;
  uint64_t before = 0;
  {
    MutexLock lock(mutex_);
    const auto it = records_.find(id);
    if (it == records_.end()) return NoClaim(id);
    before = it->second.lowered_bytes();
    it->second.set_lowered_bytes(before - std::min(before, bytes));
    const absl::Status taken = ledger_.Retarget(id, it->second.generation(), TargetOf(it->second));
    if (!taken.ok()) {
      it->second.set_lowered_bytes(before);
      return taken;
    }
    ticket = WriteLocked(id);
  }
  const absl::Status saved = journal_->Wait(ticket);
  MutexLock lock(mutex_);
  const auto it = records_.find(id);
  if (it == records_.end()) return NoClaim(id);
  if (saved.ok()) return saved;
  it->second.set_lowered_bytes(before);
  ledger_.Retarget(id, it->second.generation(), TargetOf(it->second)).IgnoreError();
  return saved;
}

absl::Status ClaimsBook::Drop(const std::string& id) {
  Record record;
  ClaimsJournal::Ticket ticket;
  {
    MutexLock lock(mutex_);
    const auto it = records_.find(id);
    if (it == records_.end()) return absl::OkStatus();
    record = std::move(it->second);
    records_.erase(it);
    ticket = WriteLocked(id);
  }
  if (const absl::Status saved = journal_->Wait(ticket); !saved.ok()) {
    MutexLock lock(mutex_);
    records_[id] = std::move(record);
    return saved;
  }
  ledger_.Dead(id).IgnoreError();
  return absl::OkStatus();
}

void ClaimsBook::Adopt(const persist::SandboxState& state, const Adoption& how) {
  const std::string& id = state.sandbox_id;
  MutexLock lock(mutex_);
  if (const auto it = records_.find(id); it != records_.end()) {
    Record& record = it->second;
    if (record.generation() != state.claim_generation) return;  // of an earlier VM of this name
    // It started, or grew, and nobody said so.
    if (record.vmm_pid() == 0) {
      record.set_vmm_pid(state.vmm.pid);
      record.set_vmm_start_time(state.vmm.start_time);
    }
    if (how.at_start) record.mutable_claim()->set_bytes(std::max(record.claim().bytes(), state.claim_bytes));
    sizing::LedgerEntry entry = EntryOf(record);
    if (!how.at_start) entry.target_bytes = 0;  // what is granted holds
    ledger_.Restore(entry);
    return;
  }
  if (how.known) return;
  // A VM that lives though its claim was lost: what is observed counts.
  Record record;
  laminad::v1::ClaimRequest& claim = *record.mutable_claim();
  claim.set_sandbox_id(id);
  claim.set_pod_name(Printable(state.pod_name, kMaxNameBytes));
  claim.set_pod_namespace(Printable(state.pod_namespace, kMaxNameBytes));
  claim.set_pod_uid(Printable(state.pod_uid, kMaxNameBytes));
  claim.set_bytes(state.claim_bytes);
  claim.set_shim_pid(state.shim.pid);
  claim.set_shim_start_time(state.shim.start_time);
  for (const uint32_t node : state.numa_nodes) claim.add_numa_nodes(node);
  claim.mutable_sizing()->set_vcpus(state.vcpus);
  claim.mutable_sizing()->set_memory_bytes(state.memory_bytes);
  record.set_generation(state.claim_generation);
  record.set_boot_id(boot_id_);
  record.set_vmm_pid(state.vmm.pid);
  record.set_vmm_start_time(state.vmm.start_time);
  record.set_state_path(how.state_path);
  ledger_.Restore(EntryOf(record));
  records_[id] = std::move(record);
}

}  // namespace lamina::node
