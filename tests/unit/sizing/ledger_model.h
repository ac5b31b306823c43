// The ledger's rules once more, as plainly as they can be said: one thread, a map, sums made anew each time.
// And operations as values, so that a failing sequence can be shrunk.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/status.h"
#include "sizing/ledger.h"

namespace lamina::sizing {

struct Operation {
  enum Kind {
    kClaim,
    kRange,
    kNodes,
    kPopulate,
    kCommit,
    kFail,
    kDead,
    kRetarget,
    kRelease,
    kBind,
    kResident,
    kLogin,
    kRestore,
    kKinds
  };
  Kind kind = kClaim;
  int id = 0;             // "a", "b", …
  uint64_t x = 0, y = 0;  // sizes
  bool stale = false;     // names a generation that nobody has
};

// What a caller sees: the code, and the number that came with it.
struct Outcome {
  absl::StatusCode code = absl::StatusCode::kOk;
  uint64_t value = 0;
  uint64_t available = 0, claimed = 0, resident = 0, on_node0 = 0, on_node1 = 0;
  bool operator==(const Outcome&) const = default;
};

inline constexpr uint64_t kModelCapacity = 1000, kModelNode0 = 600, kModelNode1 = 400;

// The nodes that a set of this operation names; 2 does not exist.
inline NumaNodes NodesOf(const Operation& op) {
  if (op.y % 31 == 0) return {1, 2};
  return op.y % 3 == 0 ? NumaNodes{0} : op.y % 3 == 1 ? NumaNodes{1} : NumaNodes{0, 1};
}
// What a VM restored from before was bound to, if at all.
inline NumaNodes RestoredNodesOf(const Operation& op) { return op.y % 2 == 0 ? NumaNodes{} : NodesOf(op); }

inline std::string IdOf(int id) { return std::string(1, static_cast<char>('a' + id)); }
inline std::string ClientOf(int id) { return id % 2 == 0 ? "even" : "odd"; }

inline Operation RandomOperation(std::mt19937_64& random, int ids) {
  Operation op;
  op.kind = static_cast<Operation::Kind>(random() % Operation::kKinds);
  op.id = static_cast<int>(random() % static_cast<uint64_t>(ids));
  op.x = random() % 20 == 0 ? 0 : random() % 400;
  op.y = random() % 3 == 0 ? op.x : random() % 800;
  if (random() % 50 == 0) op.x = UINT64_MAX - random() % 2;
  op.stale = random() % 10 == 0;
  return op;
}

inline std::string ToString(const Operation& op) {
  static const char* const kNames[] = {"claim",    "range",   "nodes", "populate", "commit", "fail",   "dead",
                                       "retarget", "release", "bind",  "resident", "login",  "restore"};
  return fmt::format("{} {} {} {}{}", kNames[op.kind], IdOf(op.id), op.x, op.y, op.stale ? " stale" : "");
}

class Model {
 public:
  Outcome Apply(const Operation& op) {
    Outcome out;
    out.code = Run(op, out.value);
    const unsigned __int128 sum = Sum(&LedgerEntry::counted_bytes);
    out.claimed = Saturate(sum);
    out.available = sum < kModelCapacity ? kModelCapacity - static_cast<uint64_t>(sum) : 0;
    unsigned __int128 resident = 0;
    for (const auto& [id, entry] : entries_) resident += entry.resident_bytes;
    out.resident = Saturate(resident);
    out.on_node0 = std::min(out.available, LeftOn(0));
    out.on_node1 = std::min(out.available, LeftOn(1));
    return out;
  }

 private:
  using Code = absl::StatusCode;
  static uint64_t Saturate(unsigned __int128 sum) {
    return sum > UINT64_MAX ? UINT64_MAX : static_cast<uint64_t>(sum);
  }
  template <typename Member>
  unsigned __int128 Sum(Member member) const {
    unsigned __int128 sum = 0;
    for (const auto& [id, entry] : entries_) sum += (entry.*member)();
    return sum;
  }
  // Whole shares, and for the first of the set's nodes one byte more while there is a rest.
  static uint64_t PartOn(uint32_t node, const LedgerEntry& entry) {
    const auto it = entry.nodes.find(node);
    if (it == entry.nodes.end()) return 0;
    const uint64_t place = static_cast<uint64_t>(std::distance(entry.nodes.begin(), it));
    return entry.counted_bytes() / entry.nodes.size() +
           (place < entry.counted_bytes() % entry.nodes.size() ? 1 : 0);
  }
  uint64_t LeftOn(uint32_t node) const {
    unsigned __int128 sum = 0;
    for (const auto& [id, entry] : entries_) sum += PartOn(node, entry);
    const uint64_t capacity = node == 0 ? kModelNode0 : kModelNode1;
    return sum < capacity ? capacity - static_cast<uint64_t>(sum) : 0;
  }
  // Has each node what the entry would take of it more than before?
  bool NodesHave(const LedgerEntry& before, const LedgerEntry& after) const {
    for (const uint32_t node : {0u, 1u}) {
      const uint64_t had = PartOn(node, before), wants = PartOn(node, after);
      if (wants > had && wants - had > LeftOn(node)) return false;
    }
    return true;
  }
  // Would the sum still be within the capacity if `id` counted for `counted`? Where it counts for less or the
  // same, nobody asks.
  bool Fits(const std::string& id, unsigned __int128 counted) const {
    const auto it = entries_.find(id);
    const unsigned __int128 before = it == entries_.end() ? 0 : it->second.counted_bytes();
    return counted <= before || Sum(&LedgerEntry::counted_bytes) - before + counted <= kModelCapacity;
  }

  Code Run(const Operation& op, uint64_t& value) {
    const std::string id = IdOf(op.id);
    const auto it = entries_.find(id);
    const bool known = it != entries_.end(), dying = known && it->second.dying;
    LedgerEntry* entry = known ? &it->second : nullptr;
    switch (op.kind) {
      case Operation::kClaim:
      case Operation::kRange: {
        const uint64_t min = op.x, max = op.kind == Operation::kClaim ? op.x : op.y;
        if (min == 0 || min > max) return Code::kInvalidArgument;
        if (known) return dying ? Code::kFailedPrecondition : Code::kAlreadyExists;
        if (!Fits(id, min)) return Code::kResourceExhausted;
        uint64_t granted = min;
        while (granted < max && Fits(id, granted + 1)) ++granted;
        LedgerEntry fresh;
        fresh.id = id;
        fresh.client = ClientOf(op.id);
        fresh.generation = ++generation_;
        fresh.target_bytes = granted;
        entries_[id] = fresh;
        value = op.kind == Operation::kClaim ? fresh.generation : granted;
        return Code::kOk;
      }
      case Operation::kNodes: {
        if (op.x == 0 || NodesOf(op).count(2) != 0) return Code::kInvalidArgument;
        if (dying) return Code::kFailedPrecondition;
        if (known && entry->bound) return Code::kAlreadyExists;
        LedgerEntry set = known ? *entry : LedgerEntry();
        set.id = id;
        set.client = ClientOf(op.id);
        set.target_bytes = op.x;
        set.nodes = NodesOf(op);
        if (!NodesHave(known ? *entry : LedgerEntry(), set) || !Fits(id, set.counted_bytes()))
          return Code::kResourceExhausted;
        set.generation = ++generation_;
        entries_[id] = set;
        value = set.generation;
        return Code::kOk;
      }
      case Operation::kPopulate: {
        if (!known) return Code::kNotFound;
        if (dying) return Code::kFailedPrecondition;
        const unsigned __int128 resident = static_cast<unsigned __int128>(entry->resident_bytes) + op.x;
        if (!Fits(id, resident)) return Code::kResourceExhausted;
        LedgerEntry after = *entry;
        after.resident_bytes = static_cast<uint64_t>(resident);
        if (!NodesHave(*entry, after)) return Code::kResourceExhausted;
        *entry = after;
        return Code::kOk;
      }
      case Operation::kCommit:
        if (!known) return Code::kNotFound;
        if (dying) return Code::kFailedPrecondition;
        entry->target_bytes = entry->resident_bytes;
        return Code::kOk;
      case Operation::kFail:
        if (!known) return Code::kNotFound;
        entry->dying = true;
        return Code::kOk;
      case Operation::kDead:
        if (!known) return Code::kNotFound;
        if (op.stale) return Code::kFailedPrecondition;
        entries_.erase(it);
        return Code::kOk;
      case Operation::kRetarget: {
        if (op.x == 0) return Code::kInvalidArgument;
        if (!known) return Code::kNotFound;
        if (op.stale || dying) return Code::kFailedPrecondition;
        LedgerEntry after = *entry;
        after.target_bytes = op.x;
        if (!NodesHave(*entry, after) || !Fits(id, after.counted_bytes())) return Code::kResourceExhausted;
        *entry = after;
        return Code::kOk;
      }
      case Operation::kRelease:
        if (!known || op.stale) return Code::kOk;
        if (!dying && !entry->bound && entry->resident_bytes == 0) {
          entries_.erase(it);
          value = 1;
          return Code::kOk;
        }
        value = !dying || entry->target_bytes > entry->resident_bytes;
        entry->dying = true;
        entry->target_bytes = entry->resident_bytes;
        return Code::kOk;
      case Operation::kBind:
        if (!known) return Code::kNotFound;
        if (op.stale || dying) return Code::kFailedPrecondition;
        entry->bound = true;
        return Code::kOk;
      case Operation::kResident:
        if (known) entry->resident_bytes = op.x;
        return Code::kOk;
      case Operation::kLogin:
        for (auto at = entries_.begin(); at != entries_.end();) {
          const LedgerEntry& e = at->second;
          if (e.client == ClientOf(op.id) && !e.bound && !e.dying && e.resident_bytes == 0) {
            at = entries_.erase(at);
            ++value;
          } else {
            ++at;
          }
        }
        return Code::kOk;
      case Operation::kRestore: {
        LedgerEntry& mine = entries_[id];
        mine.id = id;
        mine.target_bytes = std::max(mine.target_bytes, op.x);
        mine.resident_bytes = std::max(mine.resident_bytes, op.y);
        mine.generation = std::max(mine.generation, uint64_t{7});
        generation_ = std::max(generation_, uint64_t{7});
        mine.bound = true;
        if (!RestoredNodesOf(op).empty()) mine.nodes = RestoredNodesOf(op);
        return Code::kOk;
      }
      case Operation::kKinds:
        break;
    }
    return Code::kUnimplemented;
  }

  std::map<std::string, LedgerEntry> entries_;
  uint64_t generation_ = 0;
};

// The real one under the same operations.
inline Outcome Apply(Ledger& ledger, const Operation& op) {
  const std::string id = IdOf(op.id), client = ClientOf(op.id);
  const uint64_t generation = op.stale ? 1'000'000'000 : 0;
  Outcome out;
  const auto take = [&](const auto& result, auto value) {
    out.code = result.status().code();
    if (result.ok()) out.value = value(*result);
  };
  switch (op.kind) {
    case Operation::kClaim:
      take(ledger.Claim(id, op.x, client), [](uint64_t generation) { return generation; });
      break;
    case Operation::kRange:
      take(ledger.ClaimRange(id, op.x, op.y, client), [](const RangeGrant& grant) { return grant.bytes; });
      break;
    case Operation::kNodes:
      take(ledger.ClaimNodes(id, op.x, NodesOf(op), client), [](uint64_t generation) { return generation; });
      break;
    case Operation::kPopulate:
      out.code = ledger.Populate(id, op.x).code();
      break;
    case Operation::kCommit:
      out.code = ledger.EndBuild(id, BuildEnd::kWell).code();
      break;
    case Operation::kFail:
      out.code = ledger.EndBuild(id, BuildEnd::kFailed).code();
      break;
    case Operation::kDead:
      out.code = ledger.Dead(id, generation).code();
      break;
    case Operation::kRetarget:
      out.code = ledger.Retarget(id, generation, op.x).code();
      break;
    case Operation::kRelease:
      out.value = ledger.Release(id, generation);
      break;
    case Operation::kBind:
      out.code = ledger.Bind(id, generation).code();
      break;
    case Operation::kResident:
      ledger.SetResident(id, op.x);
      break;
    case Operation::kLogin:
      out.value = ledger.Login(client).size();
      break;
    case Operation::kRestore:
      ledger.Restore({id, 7, op.x, op.y, true, false, "", RestoredNodesOf(op)});
      break;
    case Operation::kKinds:
      break;
  }
  const LedgerTotals totals = ledger.totals();
  out.available = totals.available_bytes;
  out.claimed = totals.claimed_bytes;
  out.resident = totals.resident_bytes;
  const std::map<uint32_t, NodeTotals> nodes = ledger.totals().nodes;
  out.on_node0 = nodes.at(0).available_bytes;
  out.on_node1 = nodes.at(1).available_bytes;
  return out;
}

// Takes operations away as long as the rest still fails, first in large pieces, then one by one.
inline std::vector<Operation> Shrink(std::vector<Operation> failing,
                                     const std::function<bool(const std::vector<Operation>&)>& fails) {
  for (size_t piece = std::max<size_t>(failing.size() / 2, 1);;) {
    bool shrunk = false;
    for (size_t at = 0; at < failing.size();) {
      std::vector<Operation> rest(failing.begin(), failing.begin() + static_cast<std::ptrdiff_t>(at));
      rest.insert(rest.end(),
                  failing.begin() + static_cast<std::ptrdiff_t>(std::min(at + piece, failing.size())),
                  failing.end());
      if (fails(rest)) {
        failing = std::move(rest);
        shrunk = true;
      } else {
        at += piece;
      }
    }
    if (!shrunk && piece == 1) return failing;
    if (!shrunk) piece = std::max<size_t>(piece / 2, 1);
  }
}

}  // namespace lamina::sizing
