#include "sizing/ledger.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "base/units.h"

namespace lamina::sizing {

absl::StatusOr<uint64_t> Ledger::Claim(const std::string& id, uint64_t bytes) {
  if (id.empty()) return absl::InvalidArgumentError("claim: empty id");
  if (bytes == 0) return InvalidArgument("claim {}: 0 bytes", id);
  MutexLock lock(mutex_);
  const auto it = entries_.find(id);
  if (it != entries_.end()) {
    if (it->second.target_bytes == bytes) return it->second.generation;
    return MakeStatus(absl::StatusCode::kAlreadyExists, "claim {}: it holds {} already, asked for {}", id,
                      FormatBytes(it->second.target_bytes), FormatBytes(bytes));
  }
  if (!pressure_.empty())
    return MakeStatus(absl::StatusCode::kUnavailable, "claim {}: nothing is granted: {}", id, pressure_);
  if (bytes > AvailableLocked()) {
    return MakeStatus(absl::StatusCode::kResourceExhausted,
                      "claim {}: {} do not fit: {} of {} are claimed by {} sandboxes, {} are available", id,
                      FormatBytes(bytes), FormatBytes(claimed_), FormatBytes(capacity_), entries_.size(),
                      FormatBytes(AvailableLocked()));
  }
  LedgerEntry entry;
  entry.id = id;
  entry.generation = next_generation_++;
  entry.target_bytes = bytes;
  claimed_ += bytes;
  return entries_.emplace(id, std::move(entry)).first->second.generation;
}

void Ledger::Restore(const LedgerEntry& entry) {
  MutexLock lock(mutex_);
  LedgerEntry& mine = entries_[entry.id];
  claimed_ -= mine.counted_bytes();
  mine = entry;
  claimed_ += mine.counted_bytes();
  next_generation_ = std::max(next_generation_, entry.generation + 1);
}

absl::Status Ledger::Bind(const std::string& id, uint64_t generation) {
  MutexLock lock(mutex_);
  const auto it = entries_.find(id);
  if (it == entries_.end()) return MakeStatus(absl::StatusCode::kNotFound, "sandbox {} has no claim", id);
  if (it->second.generation != generation) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "sandbox {}: claim generation {} is stale, {} is current", id, generation,
                      it->second.generation);
  }
  it->second.bound = true;
  return absl::OkStatus();
}

absl::Status Ledger::Retarget(const std::string& id, uint64_t generation, uint64_t bytes) {
  MutexLock lock(mutex_);
  const auto it = entries_.find(id);
  if (it == entries_.end()) return MakeStatus(absl::StatusCode::kNotFound, "sandbox {} has no claim", id);
  LedgerEntry& entry = it->second;
  if (entry.generation != generation) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "sandbox {}: claim generation {} is stale, {} is current", id, generation,
                      entry.generation);
  }
  LedgerEntry wanted = entry;
  wanted.target_bytes = bytes;
  const uint64_t before = entry.counted_bytes(), after = wanted.counted_bytes();
  if (after > before && after - before > AvailableLocked()) {
    return MakeStatus(absl::StatusCode::kResourceExhausted,
                      "sandbox {}: growing to {} needs {} more, {} are available", id, FormatBytes(bytes),
                      FormatBytes(after - before), FormatBytes(AvailableLocked()));
  }
  claimed_ = claimed_ - before + after;
  entry = wanted;
  return absl::OkStatus();
}

void Ledger::SetResident(const std::string& id, uint64_t bytes) {
  MutexLock lock(mutex_);
  const auto it = entries_.find(id);
  if (it == entries_.end()) return;
  claimed_ -= it->second.counted_bytes();
  it->second.resident_bytes = bytes;
  claimed_ += it->second.counted_bytes();
}

bool Ledger::Release(const std::string& id, uint64_t generation) {
  MutexLock lock(mutex_);
  const auto it = entries_.find(id);
  if (it == entries_.end() || (generation != 0 && it->second.generation != generation)) return false;
  claimed_ -= it->second.counted_bytes();
  entries_.erase(it);
  return true;
}

void Ledger::SetPressure(std::string reason) {
  MutexLock lock(mutex_);
  pressure_ = std::move(reason);
}

std::string Ledger::pressure() const {
  MutexLock lock(mutex_);
  return pressure_;
}

LedgerTotals Ledger::totals() const {
  MutexLock lock(mutex_);
  LedgerTotals totals{capacity_, claimed_, 0, AvailableLocked(), entries_.size()};
  for (const auto& [id, entry] : entries_) totals.resident_bytes += entry.resident_bytes;
  return totals;
}

std::vector<LedgerEntry> Ledger::entries() const {
  MutexLock lock(mutex_);
  std::vector<LedgerEntry> all;
  all.reserve(entries_.size());
  for (const auto& [id, entry] : entries_) all.push_back(entry);
  return all;
}

}  // namespace lamina::sizing
