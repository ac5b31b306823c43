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

absl::StatusOr<uint64_t> Ledger::ClaimNodes(const std::string& id, uint64_t bytes, const NumaNodes& nodes,
                                            const std::string& client) {
  if (id.empty()) return absl::InvalidArgumentError("claim: empty id");
  if (bytes == 0) return InvalidArgument("claim {}: 0 bytes", id);
  if (nodes.empty()) return InvalidArgument("claim {}: an empty set of NUMA nodes", id);

  MutexLock lock(mutex_);
  for (const uint32_t node : nodes) {
    if (nodes_.count(node) != 0) continue;
    NumaNodes known;
    for (const auto& [number, place] : nodes_) known.insert(number);
    return InvalidArgument("claim {}: there is no NUMA node {} with memory here, {}", id, node,
                           known.empty() ? "nor any other" : "but " + FormatNumaNodes(known));
  }
  LedgerEntry old;
  const auto it = entries_.find(id);
  if (it != entries_.end()) {
    old = it->second;
    if (old.dying) return Dying(id);
    if (old.bound) {
      return MakeStatus(absl::StatusCode::kAlreadyExists,
                        "claim {}: it holds {} already, and its VM runs: its NUMA nodes stay what they are",
                        id, FormatBytes(old.target_bytes));
    }
  }
  if (!pressure_.empty()) return Unavailable(id, pressure_);
  LedgerEntry entry = old;
  entry.id = id;
  entry.client = client;
  entry.target_bytes = bytes;
  entry.nodes = nodes;
  RETURN_IF_ERROR(RoomLocked(
      old, entry,
      fmt::format("claim {}: {} from NUMA nodes {}", id, FormatBytes(bytes), FormatNumaNodes(nodes))));
  if (it != entries_.end()) CountLocked(old, false);
  entry.generation = next_generation_++;
  CountLocked(entry, true);
  const uint64_t generation = entry.generation;
  entries_[id] = std::move(entry);
  return generation;
}

absl::Status Ledger::RoomLocked(const LedgerEntry& before, const LedgerEntry& after,
                                const std::string& what) const {
  const NodeBytes held = DivideEvenly(before.counted_bytes(), before.nodes);
  for (const auto& [node, bytes] : DivideEvenly(after.counted_bytes(), after.nodes)) {
    const auto place = nodes_.find(node);
    if (place == nodes_.end()) continue;  // of a set restored from when the machine had it
    const auto mine = held.find(node);
    const uint64_t had = mine == held.end() ? 0 : mine->second;
    if (bytes <= had) continue;
    const Node& there = place->second;
    if (bytes - had > there.available()) {
      return MakeStatus(
          absl::StatusCode::kResourceExhausted, "{}: node {} has {} of {} available, {} are wanted there",
          what, node, FormatBytes(there.available()), FormatBytes(there.capacity), FormatBytes(bytes - had));
    }
    const Sum unused = there.claimed - there.resident;
    if (unused + (bytes - had) > there.left) {
      return MakeStatus(
          absl::StatusCode::kUnavailable,
          "{}: node {} has {} of memory left, less than the {} that are wanted there and the {} "
          "that are promised on it and not used yet: others than its sets use it",
          what, node, FormatBytes(there.left), FormatBytes(bytes - had), FormatBytes(Saturated(unused)));
    }
  }
  const uint64_t from = before.counted_bytes(), to = after.counted_bytes();
  if (to <= from || to - from <= AvailableLocked()) return absl::OkStatus();
  return MakeStatus(absl::StatusCode::kResourceExhausted, "{}: {} more are needed, {} are available", what,
                    FormatBytes(to - from), FormatBytes(AvailableLocked()));
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
    if (!entry.nodes.empty()) mine.nodes = entry.nodes;
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
  if (entry.nodes.empty()) return;
  const auto add = [&](uint64_t bytes, Sum Node::*sum) REQUIRES(mutex_) {
    for (const auto& [node, part] : DivideEvenly(bytes, entry.nodes)) {
      if (const auto it = nodes_.find(node); it != nodes_.end()) it->second.*sum += sign * part;
    }
  };
  add(entry.counted_bytes(), &Node::claimed);
  add(entry.resident_bytes, &Node::resident);
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
  if (bytes > UINT64_MAX - entry->resident_bytes)
    return MakeStatus(absl::StatusCode::kResourceExhausted, "{}: populating {} is too much", id,
                      FormatBytes(bytes));
  LedgerEntry after = *entry;
  after.resident_bytes += bytes;
  RETURN_IF_ERROR(RoomLocked(*entry, after, fmt::format("{}: populating {}", id, FormatBytes(bytes))));
  CountLocked(*entry, false);
  *entry = std::move(after);
  CountLocked(*entry, true);
  return absl::OkStatus();
}

absl::Status Ledger::EndBuild(const std::string& id, BuildEnd end) {
  MutexLock lock(mutex_);
  if (end == BuildEnd::kFailed) {
    const auto it = entries_.find(id);
    if (it == entries_.end()) return MakeStatus(absl::StatusCode::kNotFound, "sandbox {} has no claim", id);
    it->second.dying = true;
    return absl::OkStatus();
  }
  LedgerEntry* entry = nullptr;
  RETURN_IF_ERROR(FindLocked(id, 0, &entry));
  CountLocked(*entry, false);
  entry->target_bytes = entry->resident_bytes;
  CountLocked(*entry, true);
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
  LedgerEntry after = *entry;
  after.target_bytes = bytes;
  if (after.counted_bytes() > entry->counted_bytes() && !pressure_.empty()) return Unavailable(id, pressure_);
  RETURN_IF_ERROR(
      RoomLocked(*entry, after, fmt::format("sandbox {}: growing to {}", id, FormatBytes(bytes))));
  CountLocked(*entry, false);
  *entry = std::move(after);
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

void Ledger::Watch(std::string pressure, const NodeBytes& left) {
  MutexLock lock(mutex_);
  pressure_ = std::move(pressure);
  for (const auto& [number, bytes] : left) {
    if (const auto it = nodes_.find(number); it != nodes_.end()) it->second.left = bytes;
  }
}

LedgerTotals Ledger::totals() const {
  MutexLock lock(mutex_);
  LedgerTotals totals{
      capacity_, Saturated(claimed_), Saturated(resident_), AvailableLocked(), entries_.size(), pressure_,
      {}};
  for (const auto& [number, node] : nodes_) {
    totals.nodes[number] = {node.capacity, Saturated(node.claimed),
                            std::min(node.available(), AvailableLocked())};
  }
  return totals;
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
