#include "sizing/ledger.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "base/units.h"

namespace lamina::sizing {
namespace {

uint64_t Saturated(unsigned __int128 sum) {
  return sum > UINT64_MAX ? UINT64_MAX : static_cast<uint64_t>(sum);
}

absl::Status Dying(const std::string& id) {
  return MakeStatus(absl::StatusCode::kFailedPrecondition,
                    "{} is dying: its process has not been seen dead yet", id);
}

absl::Status Unavailable(const std::string& id, const std::string& pressure) {
  return MakeStatus(absl::StatusCode::kUnavailable, "claim {}: nothing is granted: {}", id, pressure);
}

}  // namespace

Ledger::Ledger(uint64_t capacity_bytes, const NodeBytes& nodes) : capacity_(capacity_bytes) {
  for (const auto& [node, bytes] : nodes) nodes_[node].capacity = bytes;
}

absl::StatusOr<uint64_t> Ledger::Claim(const std::string& id, uint64_t bytes, const std::string& client) {
  ASSIGN_OR_RETURN(const RangeGrant grant, ClaimRange(id, bytes, bytes, client));
  return grant.generation;
}

absl::StatusOr<RangeGrant> Ledger::ClaimRange(const std::string& id, uint64_t min, uint64_t max,
                                              const std::string& client) {
  if (id.empty()) return absl::InvalidArgumentError("claim: empty id");
  if (min == 0) return InvalidArgument("claim {}: 0 bytes", id);
  if (min > max) {
    return InvalidArgument("claim {}: at least {} and at most {} is no range", id, FormatBytes(min),
                           FormatBytes(max));
  }
  LedgerEntry entry;
  entry.id = id;
  entry.client = client;
  uint64_t available = 0, claimed = 0;
  size_t sandboxes = 0;
  {
    MutexLock lock(mutex_);
    if (const auto it = entries_.find(id); it != entries_.end()) {
      if (it->second.dying) return Dying(id);
      return MakeStatus(absl::StatusCode::kAlreadyExists, "claim {}: it holds {} already, asked for {}", id,
                        FormatBytes(it->second.target_bytes), FormatBytes(max));
    }
    if (!pressure_.empty()) return Unavailable(id, pressure_);
    available = AvailableLocked();
    if (min <= available) {
      entry.target_bytes = std::min(max, available);
      entry.generation = next_generation_++;
      const RangeGrant grant{entry.generation, entry.target_bytes};
      CountLocked(entry, true);
      entries_.emplace(id, std::move(entry));
      return grant;
    }
    claimed = Saturated(claimed_);
    sandboxes = entries_.size();
  }
  return MakeStatus(absl::StatusCode::kResourceExhausted,
                    "claim {}: {} do not fit: {} of {} are claimed by {} sandboxes, {} are available", id,
                    FormatBytes(min), FormatBytes(claimed), FormatBytes(capacity_), sandboxes,
                    FormatBytes(available));
}

absl::StatusOr<uint64_t> Ledger::ClaimNodes(const std::string& id, const NodeBytes& nodes,
                                            const std::string& client) {
  if (id.empty()) return absl::InvalidArgumentError("claim: empty id");
  Sum wanted = 0;
  for (const auto& [node, bytes] : nodes) wanted += bytes;
  if (wanted == 0) return InvalidArgument("claim {}: 0 bytes", id);
  if (wanted > UINT64_MAX) return InvalidArgument("claim {}: its NUMA nodes' sum is too large", id);

  MutexLock lock(mutex_);
  LedgerEntry old;
  const auto it = entries_.find(id);
  if (it != entries_.end()) {
    if (it->second.dying) return Dying(id);
    old = it->second;
  }
  if (!pressure_.empty()) return Unavailable(id, pressure_);
  for (const auto& [node, bytes] : nodes) {
    const auto place = nodes_.find(node);
    if (place == nodes_.end()) return InvalidArgument("claim {}: there is no NUMA node {}", id, node);
    const auto held = old.nodes.find(node);
    const uint64_t before = held == old.nodes.end() ? 0 : held->second;
    if (bytes > before && place->second.claimed + (bytes - before) > place->second.capacity) {
      return MakeStatus(absl::StatusCode::kResourceExhausted,
                        "claim {}: {} do not fit on NUMA node {}: {} of {} are claimed", id,
                        FormatBytes(bytes), node, FormatBytes(Saturated(place->second.claimed)),
                        FormatBytes(place->second.capacity));
    }
  }
  LedgerEntry entry = old;
  entry.id = id;
  entry.client = client;
  entry.target_bytes = static_cast<uint64_t>(wanted);
  entry.nodes = nodes;
  const uint64_t before = old.counted_bytes(), after = entry.counted_bytes();
  if (after > before && after - before > AvailableLocked()) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "claim {}: {} do not fit: {} are available", id,
                      FormatBytes(after - before), FormatBytes(AvailableLocked()));
  }
  if (it != entries_.end()) CountLocked(old, false);
  entry.generation = next_generation_++;
  CountLocked(entry, true);
  const uint64_t generation = entry.generation;
  entries_[id] = std::move(entry);
  return generation;
}

void Ledger::Restore(const LedgerEntry& entry) {
  MutexLock lock(mutex_);
  next_generation_ = std::max(next_generation_, entry.generation + 1);
  const auto [it, created] = entries_.emplace(entry.id, entry);
  if (!created) {
    LedgerEntry& mine = it->second;
    CountLocked(mine, false);
    mine.target_bytes = std::max(mine.target_bytes, entry.target_bytes);
    mine.resident_bytes = std::max(mine.resident_bytes, entry.resident_bytes);
    mine.generation = std::max(mine.generation, entry.generation);
    mine.bound |= entry.bound;
    mine.dying |= entry.dying;
    for (const auto& [node, bytes] : entry.nodes) mine.nodes[node] = std::max(mine.nodes[node], bytes);
  }
  CountLocked(it->second, true);
}

std::vector<std::string> Ledger::Login(const std::string& client) {
  MutexLock lock(mutex_);
  std::vector<std::string> lost;
  for (const auto& [id, entry] : entries_) {
    if (entry.client == client && !entry.bound && !entry.dying && entry.resident_bytes == 0)
      lost.push_back(id);
  }
  for (const std::string& id : lost) EraseLocked(id);
  std::sort(lost.begin(), lost.end());
  return lost;
}

absl::Status Ledger::FindLocked(const std::string& id, uint64_t generation, LedgerEntry** found) {
  const auto it = entries_.find(id);
  if (it == entries_.end()) return MakeStatus(absl::StatusCode::kNotFound, "sandbox {} has no claim", id);
  if (generation != 0 && it->second.generation != generation) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "sandbox {}: claim generation {} is stale, {} is current", id, generation,
                      it->second.generation);
  }
  if (it->second.dying) return Dying(id);
  *found = &it->second;
  return absl::OkStatus();
}

void Ledger::CountLocked(const LedgerEntry& entry, bool in) {
  const Sum sign = in ? Sum{1} : ~Sum{0};  // arithmetic modulo 2^128: adding -1 times takes away
  claimed_ += sign * entry.counted_bytes();
  resident_ += sign * entry.resident_bytes;
  for (const auto& [node, bytes] : entry.nodes) nodes_[node].claimed += sign * bytes;
}

void Ledger::EraseLocked(const std::string& id) {
  const auto it = entries_.find(id);
  CountLocked(it->second, false);
  entries_.erase(it);
}

absl::Status Ledger::Bind(const std::string& id, uint64_t generation) {
  MutexLock lock(mutex_);
  LedgerEntry* entry = nullptr;
  RETURN_IF_ERROR(FindLocked(id, generation, &entry));
  entry->bound = true;
  return absl::OkStatus();
}

absl::Status Ledger::Populate(const std::string& id, uint64_t bytes) {
  MutexLock lock(mutex_);
  LedgerEntry* entry = nullptr;
  RETURN_IF_ERROR(FindLocked(id, 0, &entry));
  const Sum resident = Sum{entry->resident_bytes} + bytes;
  const Sum before = entry->counted_bytes();
  if (resident > before && resident - before > AvailableLocked()) {
    return MakeStatus(absl::StatusCode::kResourceExhausted,
                      "{}: populating {} is {} beyond its claim, {} are available", id, FormatBytes(bytes),
                      FormatBytes(Saturated(resident - before)), FormatBytes(AvailableLocked()));
  }
  CountLocked(*entry, false);
  entry->resident_bytes = static_cast<uint64_t>(resident);  // counted within 64 bits, so it is within too
  CountLocked(*entry, true);
  return absl::OkStatus();
}

absl::Status Ledger::Commit(const std::string& id) {
  MutexLock lock(mutex_);
  LedgerEntry* entry = nullptr;
  RETURN_IF_ERROR(FindLocked(id, 0, &entry));
  CountLocked(*entry, false);
  entry->target_bytes = entry->resident_bytes;
  CountLocked(*entry, true);
  return absl::OkStatus();
}

absl::Status Ledger::Fail(const std::string& id) {
  MutexLock lock(mutex_);
  const auto it = entries_.find(id);
  if (it == entries_.end()) return MakeStatus(absl::StatusCode::kNotFound, "sandbox {} has no claim", id);
  it->second.dying = true;
  return absl::OkStatus();
}

absl::Status Ledger::Dead(const std::string& id, uint64_t generation) {
  MutexLock lock(mutex_);
  LedgerEntry* entry = nullptr;
  const auto it = entries_.find(id);
  if (it != entries_.end() && it->second.dying && (generation == 0 || generation == it->second.generation)) {
    EraseLocked(id);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(FindLocked(id, generation, &entry));
  EraseLocked(id);
  return absl::OkStatus();
}

absl::Status Ledger::Retarget(const std::string& id, uint64_t generation, uint64_t bytes) {
  if (bytes == 0) return InvalidArgument("retarget {}: 0 bytes", id);
  MutexLock lock(mutex_);
  LedgerEntry* entry = nullptr;
  RETURN_IF_ERROR(FindLocked(id, generation, &entry));
  if (!entry->nodes.empty())
    return InvalidArgument("retarget {}: it holds a set of NUMA nodes; claim a new set", id);
  const uint64_t before = entry->counted_bytes(), after = std::max(bytes, entry->resident_bytes);
  if (after > before && !pressure_.empty()) return Unavailable(id, pressure_);
  if (after > before && after - before > AvailableLocked()) {
    return MakeStatus(absl::StatusCode::kResourceExhausted,
                      "sandbox {}: growing to {} needs {} more, {} are available", id, FormatBytes(bytes),
                      FormatBytes(after - before), FormatBytes(AvailableLocked()));
  }
  CountLocked(*entry, false);
  entry->target_bytes = bytes;
  CountLocked(*entry, true);
  return absl::OkStatus();
}

bool Ledger::Release(const std::string& id, uint64_t generation) {
  MutexLock lock(mutex_);
  const auto it = entries_.find(id);
  if (it == entries_.end() || (generation != 0 && it->second.generation != generation)) return false;
  LedgerEntry& entry = it->second;
  if (!entry.dying && !entry.bound && entry.resident_bytes == 0) {
    EraseLocked(id);
    return true;
  }
  const bool changes = !entry.dying || entry.outstanding_bytes() > 0;
  CountLocked(entry, false);
  entry.target_bytes = entry.resident_bytes;
  entry.dying = true;
  CountLocked(entry, true);
  return changes;
}

void Ledger::SetResident(const std::string& id, uint64_t bytes) {
  MutexLock lock(mutex_);
  const auto it = entries_.find(id);
  if (it == entries_.end()) return;
  CountLocked(it->second, false);
  it->second.resident_bytes = bytes;
  CountLocked(it->second, true);
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
  return {capacity_, Saturated(claimed_), Saturated(resident_), AvailableLocked(), entries_.size()};
}

uint64_t Ledger::available_on(uint32_t node) const {
  MutexLock lock(mutex_);
  const auto it = nodes_.find(node);
  if (it == nodes_.end() || it->second.claimed >= it->second.capacity) return 0;
  return it->second.capacity - static_cast<uint64_t>(it->second.claimed);
}

std::vector<LedgerEntry> Ledger::entries() const {
  std::vector<LedgerEntry> all;
  {
    MutexLock lock(mutex_);
    all.reserve(entries_.size());
    for (const auto& [id, entry] : entries_) all.push_back(entry);
  }
  std::sort(all.begin(), all.end(), [](const LedgerEntry& a, const LedgerEntry& b) { return a.id < b.id; });
  return all;
}

}  // namespace lamina::sizing
