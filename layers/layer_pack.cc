// Moves idle layers together, so that arenas become empty.
#include <algorithm>

#include "base/log.h"
#include "base/status.h"
#include "layers/arena_file.h"
#include "layers/layer_records.h"

namespace lamina::layers {

struct LayerStore::Move {
  std::string digest, domain;
  std::string from_id, from_path, to_id, to_path;
  Region from, to;
};

LayerStore::Arena* LayerStore::EmptiestIdleLocked(const std::set<std::string>& but) {
  Arena* emptiest = nullptr;
  for (auto& [id, arena] : arenas_) {
    if (but.count(id) != 0) continue;
    const bool idle = std::all_of(arena->regions.begin(), arena->regions.end(),
                                  [](const auto& item) { return item.second.idle(); });
    if (!idle) continue;
    if (emptiest == nullptr || arena->pool->stats().held_bytes < emptiest->pool->stats().held_bytes)
      emptiest = arena.get();
  }
  return emptiest;
}

bool LayerStore::PlanMovesLocked(Arena& from, std::vector<Move>& moves) {
  std::vector<Arena*> targets;
  for (auto& [id, arena] : arenas_) {
    if (id != from.id && arena->domain == from.domain) targets.push_back(arena.get());
  }
  std::sort(targets.begin(), targets.end(), [](const Arena* a, const Arena* b) {
    return a->pool->stats().held_bytes > b->pool->stats().held_bytes;
  });
  bool fits = true;
  for (const auto& [digest, entry] : from.regions) {
    if (filling_.count(digest + "|" + from.domain) != 0) fits = false;
    Move move{digest, from.domain, from.id, from.path, "", "", entry.region, {}};
    for (Arena* target : targets) {
      if (!fits || !move.to_id.empty()) break;
      if (target->regions.count(digest) != 0)
        continue;  // a second copy, for a VM that could not take the first
      const absl::StatusOr<Region> room = target->pool->Allocate(entry.region.payload_bytes);
      if (!room.ok()) continue;
      move.to_id = target->id;
      move.to_path = target->path;
      move.to = *room;
    }
    fits = fits && !move.to_id.empty();
    if (!fits) break;
    moves.push_back(std::move(move));
  }
  for (const Move& move : moves) {
    Arena& target = *arenas_.at(move.to_id);
    if (!fits) {
      target.pool->Release(move.to.handle).IgnoreError();
      continue;
    }
    // Invisible until it is copied; who asks for the layer meanwhile waits for the move's end.
    Entry& copy = target.regions[move.digest];
    copy.region = move.to;
    filling_.insert(move.digest + "|" + move.domain);
    ++from.regions.at(move.digest).pins;
  }
  if (!fits) moves.clear();
  return fits;
}

absl::Status LayerStore::MoveLayer(const Move& move, PackResult& result) {
  absl::Status status = CopyIntoArena(move.to_path, move.to.offset, move.from_path, move.from.offset,
                                      move.from.payload_bytes, move.digest);
  MutexLock lock(mutex_);
  filling_.erase(move.digest + "|" + move.domain);
  flight_ended_.NotifyAll();
  Arena& from = *arenas_.at(move.from_id);
  Arena& to = *arenas_.at(move.to_id);
  Entry& old = from.regions.at(move.digest);
  --old.pins;
  if (absl::IsDataLoss(status)) {
    LogWarning("layer {} at {} of {} is damaged: it is dropped", move.digest, move.from.offset,
               move.from_path);
    DropRegionLocked(to, move.digest);
    DropRegionLocked(from, move.digest);
    ++counters_.evictions;
    return SaveLocked();
  }
  if (status.ok() && old.pins > 0) status = absl::UnavailableError("it is being copied for another domain");
  if (status.ok()) {
    Entry& copy = to.regions.at(move.digest);
    copy.ready = copy.verified = true;
    copy.last_use = old.last_use;
    Entry gone = std::move(old);
    from.regions.erase(move.digest);
    status = SaveLocked();  // only now the old place is given up
    if (!status.ok()) from.regions[move.digest] = std::move(gone);
  }
  if (!status.ok()) {
    DropRegionLocked(to, move.digest);
    return Annotate(status, "move layer " + move.digest);
  }
  PunchArena(from.path, move.from.offset, move.from.held_bytes).IgnoreError();
  from.pool->Release(move.from.handle).IgnoreError();
  ++result.moved_layers;
  result.moved_bytes += move.from.payload_bytes;
  return absl::OkStatus();
}

absl::StatusOr<PackResult> LayerStore::Pack() {
  PackResult result;
  std::set<std::string> seen;
  absl::Status first;
  for (;;) {
    std::vector<Move> moves;
    {
      MutexLock lock(mutex_);
      Arena* from = EmptiestIdleLocked(seen);
      if (from == nullptr) break;
      seen.insert(from->id);
      if (!PlanMovesLocked(*from, moves)) continue;
    }
    for (const Move& move : moves) {
      const absl::Status status = MoveLayer(move, result);
      if (first.ok()) first = status;
    }
    MutexLock lock(mutex_);
    const size_t before = arenas_.size();
    DropEmptyArenasLocked();
    result.removed_arenas += before - arenas_.size();
  }
  MutexLock lock(mutex_);
  RETURN_IF_ERROR(SaveLocked());
  RETURN_IF_ERROR(first);
  return result;
}

}  // namespace lamina::layers
