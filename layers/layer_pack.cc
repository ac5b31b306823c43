#include "layers/layer_pack.h"

#include <algorithm>
#include <vector>

#include "base/log.h"
#include "base/status.h"
#include "layers/layer_book.h"

namespace lamina::layers {
namespace {

struct Move {
  std::string digest, domain, from_id, to_id;
  ArenaRange from, to;
  Handle from_handle, to_handle;
};

// Null: none that has not been `seen`.
ArenaRecord* EmptiestIdle(LayerRecords& records, const std::set<std::string>& seen) {
  ArenaRecord* emptiest = nullptr;
  for (auto& [id, arena] : records.arenas) {
    if (seen.count(id) != 0 || !arena.created) continue;
    const bool idle = std::all_of(arena.regions.begin(), arena.regions.end(),
                                  [](const auto& item) { return item.second.idle(); });
    if (!idle) continue;
    if (emptiest == nullptr || arena.pool->stats().held_bytes < emptiest->pool->stats().held_bytes)
      emptiest = &arena;
  }
  return emptiest;
}

// The domain's other arenas, fullest first.
std::vector<ArenaRecord*> TargetsFor(LayerRecords& records, const ArenaRecord& from) {
  std::vector<ArenaRecord*> targets;
  for (auto& [id, arena] : records.arenas) {
    if (id != from.id && arena.domain == from.domain && arena.created) targets.push_back(&arena);
  }
  std::sort(targets.begin(), targets.end(), [](const ArenaRecord* a, const ArenaRecord* b) {
    return a->pool->stats().held_bytes > b->pool->stats().held_bytes;
  });
  return targets;
}

// A place for each layer of the arena, or nothing at all. A layer's place is reserved: invisible until it is
// copied; the old one is pinned.
std::vector<Move> PlanMoves(StoreParts& parts, ArenaRecord& from) REQUIRES(parts.mutex) {
  const std::vector<ArenaRecord*> targets = TargetsFor(parts.records, from);
  std::vector<Move> moves;
  bool fits = true;
  for (const auto& [digest, region] : from.regions) {
    Move move{digest,
              from.domain,
              from.id,
              "",
              {from.path, region.region.offset, region.region.payload_bytes},
              {},
              region.region.handle,
              {}};
    fits = parts.filling.count(FillingKey(digest, from.domain)) == 0;
    for (size_t i = 0; fits && i < targets.size() && move.to_id.empty(); ++i) {
      // A second copy, for a VM that could not take the first.
      if (targets[i]->regions.count(digest) != 0) continue;
      const absl::StatusOr<Region> room = targets[i]->pool->Allocate(region.region.payload_bytes);
      if (!room.ok()) continue;
      move.to_id = targets[i]->id;
      move.to = {targets[i]->path, room->offset, room->payload_bytes};
      move.to_handle = room->handle;
      targets[i]->regions[digest].region = *room;
    }
    fits = fits && !move.to_id.empty();
    if (!fits) break;
    moves.push_back(std::move(move));
  }
  for (const Move& move : moves) {
    if (fits) {
      parts.filling.insert(FillingKey(move.digest, move.domain));
      ++from.regions.at(move.digest).pins;
      continue;
    }
    ArenaRecord& target = parts.records.arenas.at(move.to_id);
    target.regions.erase(move.digest);
    target.pool->Release(move.to_handle).IgnoreError();
  }
  if (!fits) moves.clear();
  return moves;
}

absl::Status Copy(StoreParts& parts, const Move& move) {
  ASSIGN_OR_RETURN(const DiskRoom::Share room, parts.disk.Take(move.to.bytes));
  ASSIGN_OR_RETURN(const UniqueFd from, OpenToRead(move.from.path));
  return parts.arenas.CopyIn({from.get(), move.from.path, move.from.offset}, move.to, move.digest, {});
}

// The new place is durable before the old one is given up. Nobody takes either meanwhile: the layer is among
// those being filled.
absl::Status Commit(StoreParts& parts, const Move& move) {
  {
    MutexLock lock(parts.mutex);
    RegionRecord& old = parts.records.arenas.at(move.from_id).regions.at(move.digest);
    if (old.pins > 1) return absl::UnavailableError("it is being copied for another domain");
    RegionRecord& copy = parts.records.arenas.at(move.to_id).regions.at(move.digest);
    copy.ready = copy.verified = true;
    copy.last_use = old.last_use;
    old.ready = false;  // no name of it in the index
    ++parts.records.version;
  }
  const absl::Status saved = parts.Save();
  if (saved.ok()) return saved;
  MutexLock lock(parts.mutex);
  parts.records.arenas.at(move.from_id).regions.at(move.digest).ready = true;
  ++parts.records.version;
  return saved;
}

absl::Status MoveLayer(StoreParts& parts, const Move& move, PackResult& result) {
  const absl::Status copied = Copy(parts, move);
  const absl::Status status = copied.ok() ? Commit(parts, move) : copied;
  const bool damaged = absl::IsDataLoss(copied);
  Chores chores;
  {
    MutexLock lock(parts.mutex);
    ArenaRecord& from = parts.records.arenas.at(move.from_id);
    --from.regions.at(move.digest).pins;
    if (!status.ok()) DropRegion(parts.records, parts.records.arenas.at(move.to_id), move.digest, chores);
    if (status.ok() || (damaged && from.regions.at(move.digest).idle()))
      DropRegion(parts.records, from, move.digest, chores);
    if (damaged) ++parts.counters.evictions;
    parts.filling.erase(FillingKey(move.digest, move.domain));
    parts.changed.NotifyAll();
  }
  parts.Finish(chores);
  if (damaged) {
    LogWarning("layer {} at {} of {} is damaged: it is dropped", move.digest, move.from.offset,
               move.from.path);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(Annotate(status, "move layer " + move.digest));
  ++result.moved_layers;
  result.moved_bytes += move.from.bytes;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PackResult> PackArenas(StoreParts& parts) {
  PackResult result;
  std::set<std::string> seen;
  absl::Status first;
  for (;;) {
    std::vector<Move> moves;
    {
      MutexLock lock(parts.mutex);
      ArenaRecord* from = EmptiestIdle(parts.records, seen);
      if (from == nullptr) break;
      seen.insert(from->id);
      moves = PlanMoves(parts, *from);
    }
    if (moves.empty()) continue;
    for (const Move& move : moves) {
      const absl::Status status = MoveLayer(parts, move, result);
      if (first.ok()) first = status;
    }
    Chores chores;
    {
      MutexLock lock(parts.mutex);
      const size_t before = parts.records.arenas.size();
      DropEmptyArenas(parts.records, chores);
      result.removed_arenas += before - parts.records.arenas.size();
    }
    parts.Finish(chores);
  }
  RETURN_IF_ERROR(parts.Save());
  RETURN_IF_ERROR(first);
  return result;
}

}  // namespace lamina::layers
