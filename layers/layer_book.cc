// What the store keeps book of: who uses what, what is idle, what goes when room is needed.
#include <algorithm>

#include "base/log.h"
#include "base/status.h"
#include "base/units.h"
#include "layers/arena_file.h"
#include "layers/layer_records.h"

namespace lamina::layers {

// Whether the VM sees the region, or can take one more window to see it, which it then takes.
bool LayerStore::Reach(Devices& devices, const Arena& arena, const Region& region) const {
  const auto it = devices.windows.find(arena.id);
  if (it != devices.windows.end() && EndOf(region) <= it->second) return true;
  if (devices.free == 0) return false;
  --devices.free;
  devices.windows[arena.id] = arena.bytes;  // SetWindowsLocked says how large it really is
  return true;
}

void LayerStore::SetWindowsLocked(const PlaceRequest& request, std::vector<Placement>& placements) const {
  std::map<std::string, uint64_t> ends;
  for (const Placement& p : placements) {
    if (p.kind != PlacementKind::kVpmem) continue;
    uint64_t& end = ends[p.arena_id];
    end = std::max(end, EndOf({{}, p.offset, p.held_bytes, p.payload_bytes}));
  }
  for (Placement& p : placements) {
    if (p.kind != PlacementKind::kVpmem) continue;
    const auto had = request.attached_arenas.find(p.arena_id);
    const uint64_t before = had == request.attached_arenas.end() ? 0 : had->second;
    const uint64_t end = ends[p.arena_id];
    // A second window on the same arena is at least twice the first, so that a VM needs few of them.
    p.arena_bytes = end <= before
                        ? before
                        : std::min(arenas_.at(p.arena_id)->bytes,
                                   std::max((end + kWindowStep - 1) / kWindowStep * kWindowStep, 2 * before));
  }
}

bool LayerStore::Ours(const std::string& path) const { return path.rfind(options_.dir + "/", 0) == 0; }

std::string LayerStore::TreePath(const std::string& digest) const {
  return options_.dir + "/" + digest + ".verity";
}

LayerStore::Entry* LayerStore::FindRegionLocked(const PlaceRequest& request, Devices& devices,
                                                const std::string& digest, Arena*& arena) {
  for (const bool attached : {true, false}) {
    for (auto& [id, candidate] : arenas_) {
      if (candidate->domain != request.domain || (devices.windows.count(id) != 0) != attached) continue;
      const auto it = candidate->regions.find(digest);
      if (it == candidate->regions.end() || !it->second.ready ||
          !Reach(devices, *candidate, it->second.region))
        continue;
      arena = candidate.get();
      return &it->second;
    }
  }
  return nullptr;
}

absl::Status LayerStore::SaveFor(const Devices& devices) {
  if (!devices.save_later) return SaveLocked();
  unsaved_ = true;
  return absl::OkStatus();
}

absl::Status LayerStore::UseLocked(const Devices& devices, std::set<std::string>& users,
                                   const std::string& sandbox_id) {
  const bool added = users.insert(sandbox_id).second;
  if (added) ++counters_.reuses;
  return added || unsaved_ ? SaveFor(devices) : absl::OkStatus();
}

void LayerStore::DropDiskLocked(const std::string& key) {
  const auto it = disks_.find(key);
  if (it == disks_.end()) return;
  const std::string digest = it->second->digest;
  if (Ours(it->second->path)) fs_.Remove(it->second->path).IgnoreError();
  disks_.erase(it);
  const bool other = std::any_of(disks_.begin(), disks_.end(),
                                 [&](const auto& item) { return item.second->digest == digest; });
  if (options_.scsi_verity && !other) fs_.Remove(TreePath(digest)).IgnoreError();
}

void LayerStore::DropEmptyArenasLocked() {
  for (auto it = arenas_.begin(); it != arenas_.end();) {
    if (it->second->regions.empty()) {
      fs_.Remove(it->second->path).IgnoreError();
      it = arenas_.erase(it);
    } else {
      ++it;
    }
  }
}

void LayerStore::DropRegionLocked(Arena& arena, const std::string& digest) {
  const auto it = arena.regions.find(digest);
  if (it == arena.regions.end()) return;
  PunchArena(arena.path, it->second.region.offset, it->second.region.held_bytes).IgnoreError();
  arena.pool->Release(it->second.region.handle).IgnoreError();
  arena.regions.erase(it);
}

bool LayerStore::EvictOneLocked(Arena& arena) {
  auto oldest = arena.regions.end();
  for (auto it = arena.regions.begin(); it != arena.regions.end(); ++it) {
    if (!it->second.idle()) continue;
    if (oldest == arena.regions.end() || it->second.last_use < oldest->second.last_use) oldest = it;
  }
  if (oldest == arena.regions.end()) return false;
  DropRegionLocked(arena, std::string(oldest->first));
  ++counters_.evictions;
  return true;
}

LayerStore::Arena* LayerStore::FindRoomLocked(const PlaceRequest& request, Devices& devices, uint64_t bytes,
                                              Region& region, std::string& why_not, absl::Status& error) {
  // What the VM has, then what the domain has; without eviction, then with it; a new arena comes before
  // evicting from one not attached.
  for (const bool evict : {false, true}) {
    for (const bool attached : {true, false}) {
      for (auto& [id, arena] : arenas_) {
        if (arena->domain != request.domain || (devices.windows.count(id) != 0) != attached ||
            (!attached && devices.free == 0))
          continue;
        do {
          absl::StatusOr<Region> found = arena->pool->Allocate(bytes);
          if (found.ok() && Reach(devices, *arena, *found)) {
            region = *found;
            return arena.get();
          }
          if (found.ok()) {  // beyond what the VM sees
            arena->pool->Release(found->handle).IgnoreError();
            break;
          }
          if (found.status().code() != absl::StatusCode::kResourceExhausted) {
            why_not = Message(found.status());
            return nullptr;
          }
        } while (evict && EvictOneLocked(*arena));
      }
    }
    const size_t have =
        static_cast<size_t>(std::count_if(arenas_.begin(), arenas_.end(), [&](const auto& item) {
          return item.second->domain == request.domain;
        }));
    const bool full = options_.max_arenas_per_domain != 0 && have >= options_.max_arenas_per_domain;
    if (evict || full || devices.free == 0) continue;
    auto arena = std::make_unique<Arena>();
    arena->id = fmt::format("arena-{}", next_arena_++);
    arena->domain = request.domain;
    arena->path = options_.dir + "/" + arena->id + ".arena";
    arena->bytes = options_.arena_bytes;
    arena->policy = options_.policy;
    absl::StatusOr<std::unique_ptr<PoolAllocator>> pool =
        MakeAllocator(options_.policy, options_.arena_bytes);
    error = pool.ok() ? CreateArenaFile(arena->path, arena->bytes) : pool.status();
    if (!error.ok()) return nullptr;
    arena->pool = std::move(*pool);
    absl::StatusOr<Region> found = arena->pool->Allocate(bytes);
    Arena* raw = arena.get();
    arenas_[arena->id] = std::move(arena);
    if (found.ok() && Reach(devices, *raw, *found)) {
      region = *found;
      return raw;
    }
  }
  why_not = devices.free == 0 ? "no room in the attached arenas and no device slot for another"
                              : "no room in the domain's arenas";
  return nullptr;
}

absl::Status LayerStore::ReleaseSandbox(const std::string& sandbox_id) {
  MutexLock lock(mutex_);
  bool changed = false;
  for (auto& [id, arena] : arenas_) {
    for (auto it = arena->regions.begin(); it != arena->regions.end();) {
      const auto current = it++;
      if (current->second.users.erase(sandbox_id) == 0) continue;
      changed = true;
      if (IsDamaged(current->first) && current->second.idle())
        DropRegionLocked(*arena, std::string(current->first));
    }
  }
  for (auto it = disks_.begin(); it != disks_.end();) {
    const auto current = it++;
    Disk& disk = *current->second;
    changed = disk.users.erase(sandbox_id) != 0 || changed;
    if (!Ours(disk.path) && disk.idle())
      DropDiskLocked(std::string(current->first));  // its owner may delete it now
  }
  if (!changed && !unsaved_) return absl::OkStatus();
  GcLocked(options_.idle_budget_bytes);
  return SaveLocked();
}

absl::Status LayerStore::RetainSandboxes(const std::set<std::string>& living) {
  std::set<std::string> gone;
  {
    MutexLock lock(mutex_);
    const auto collect = [&](const std::set<std::string>& users) {
      for (const std::string& user : users) {
        if (living.count(user) == 0) gone.insert(user);
      }
    };
    for (const auto& [id, arena] : arenas_) {
      for (const auto& [digest, entry] : arena->regions) collect(entry.users);
    }
    for (const auto& [digest, disk] : disks_) collect(disk->users);
  }
  for (const std::string& id : gone) RETURN_IF_ERROR(ReleaseSandbox(id));
  return absl::OkStatus();
}

uint64_t LayerStore::GcLocked(uint64_t keep_bytes) {
  uint64_t freed = 0;
  for (;;) {
    uint64_t idle = 0, oldest_use = UINT64_MAX;
    Arena* oldest_arena = nullptr;
    std::string oldest;
    for (const auto& [id, arena] : arenas_) {
      for (const auto& [digest, entry] : arena->regions) {
        if (!entry.idle()) continue;
        idle += entry.region.held_bytes;
        if (entry.last_use < oldest_use)
          oldest_use = entry.last_use, oldest_arena = arena.get(), oldest = digest;
      }
    }
    for (const auto& [key, disk] : disks_) {
      if (!disk->idle()) continue;
      idle += disk->bytes;
      if (disk->last_use < oldest_use) oldest_use = disk->last_use, oldest_arena = nullptr, oldest = key;
    }
    if (oldest.empty() || idle <= keep_bytes) break;
    if (oldest_arena != nullptr) {
      freed += oldest_arena->regions.at(oldest).region.held_bytes;
      DropRegionLocked(*oldest_arena, oldest);
    } else {
      freed += disks_.at(oldest)->bytes;
      DropDiskLocked(oldest);
    }
    ++counters_.evictions;
  }
  DropEmptyArenasLocked();
  if (!flights_.empty()) return freed;  // what they know now may be placed in a moment
  std::set<std::string> kept;
  for (const auto& [id, arena] : arenas_) {
    for (const auto& [digest, entry] : arena->regions) kept.insert(digest);
  }
  for (const auto& [key, disk] : disks_) kept.insert(disk->digest);
  for (auto it = digests_.begin(); it != digests_.end();)
    it = kept.count(it->second) == 0 ? digests_.erase(it) : std::next(it);
  return freed;
}

absl::StatusOr<uint64_t> LayerStore::Gc(uint64_t keep_bytes) {
  MutexLock lock(mutex_);
  const uint64_t freed = GcLocked(keep_bytes);
  RETURN_IF_ERROR(SaveLocked());
  return freed;
}

std::vector<ArenaInfo> LayerStore::arenas() const {
  MutexLock lock(mutex_);
  std::vector<ArenaInfo> all;
  for (const auto& [id, arena] : arenas_) {
    const PoolStats stats = arena->pool->stats();
    ArenaInfo info{id, arena->domain, arena->path, arena->bytes, stats.held_bytes, stats.payload_bytes, 0,
                   {}};
    for (const auto& [digest, entry] : arena->regions) {
      const uint64_t end = (EndOf(entry.region) + kWindowStep - 1) / kWindowStep * kWindowStep;
      info.window_bytes = std::min(arena->bytes, std::max(info.window_bytes, end));
      info.regions.push_back(
          {digest, entry.region.offset, entry.region.held_bytes, entry.region.payload_bytes, entry.users});
    }
    std::sort(info.regions.begin(), info.regions.end(),
              [](const auto& a, const auto& b) { return a.offset < b.offset; });
    all.push_back(std::move(info));
  }
  return all;
}

std::vector<ArenaInfo> LayerStore::ArenasOf(const std::string& domain, size_t limit) const {
  std::vector<ArenaInfo> mine;
  for (ArenaInfo& info : arenas()) {
    if (info.domain == domain && info.payload_bytes > 0) mine.push_back(std::move(info));
  }
  std::sort(mine.begin(), mine.end(),
            [](const auto& a, const auto& b) { return a.payload_bytes > b.payload_bytes; });
  if (mine.size() > limit) mine.resize(limit);
  return mine;
}

std::vector<DiskInfo> LayerStore::disks() const {
  MutexLock lock(mutex_);
  std::vector<DiskInfo> all;
  for (const auto& [key, disk] : disks_)
    all.push_back({disk->digest, disk->path, disk->why, disk->tree.root_hash, disk->bytes, disk->users});
  return all;
}

StoreCounters LayerStore::counters() const {
  MutexLock lock(mutex_);
  return counters_;
}

}  // namespace lamina::layers
