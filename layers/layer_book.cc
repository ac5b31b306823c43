#include "layers/layer_book.h"

#include <algorithm>

#include "base/status.h"

namespace lamina::layers {
namespace {

absl::StatusOr<ArenaRecord> RestoreArena(const IndexedArena& indexed, const StoreOptions& options) {
  ArenaRecord arena;
  arena.id = indexed.id;
  arena.domain = indexed.domain;
  arena.bytes = indexed.bytes;
  arena.policy = indexed.policy;  // an arena keeps the policy that its regions came from
  arena.path = ArenaPath(options.dir, arena.id);
  arena.created = true;
  ASSIGN_OR_RETURN(arena.pool, MakeAllocator(arena.policy, arena.bytes));
  for (const IndexedRegion& region : indexed.regions) {
    RETURN_IF_ERROR(Annotate(arena.pool->Restore(region.region), options.dir + ": " + arena.id));
    RegionRecord record;
    record.region = region.region;
    record.users = region.users;
    record.last_use = region.last_use;
    record.ready = true;
    arena.regions[region.digest] = std::move(record);
  }
  return arena;
}

void DropIfUnusedBlob(LayerRecords& records, const StoreOptions& options, const std::string& key,
                      Chores& chores) {
  const DiskRecord& disk = records.disks.at(key);
  if (!IsOurs(options.dir, disk.path) && disk.idle() && records.busy_disks.count(disk.digest) == 0)
    DropDisk(records, options, key, chores);
}

}  // namespace

absl::StatusOr<LayerRecords> RestoreRecords(const IndexContent& content, const StoreOptions& options) {
  LayerRecords records;
  records.next_arena = std::max<uint64_t>(1, content.next_arena);
  records.digests = content.sources;
  for (const IndexedArena& indexed : content.arenas) {
    ASSIGN_OR_RETURN(ArenaRecord arena, RestoreArena(indexed, options));
    for (const auto& [digest, region] : arena.regions)
      records.use_clock = std::max(records.use_clock, region.last_use + 1);
    records.arenas[indexed.id] = std::move(arena);
  }
  for (const IndexedDisk& indexed : content.disks) {
    DiskRecord disk;
    disk.digest = indexed.digest;
    disk.path = indexed.path;
    disk.why = indexed.why;
    disk.bytes = indexed.bytes;
    disk.users = indexed.users;
    disk.last_use = indexed.last_use;
    records.use_clock = std::max(records.use_clock, disk.last_use + 1);
    records.disks[DiskKey(options.dir, disk.digest, disk.path)] = std::move(disk);
  }
  return records;
}

bool AddUser(LayerRecords& records, std::set<std::string>& users, const std::string& sandbox_id) {
  if (!users.insert(sandbox_id).second) return false;
  ++records.version;
  return true;
}

bool ReleaseUser(LayerRecords& records, const StoreOptions& options, const std::string& sandbox_id,
                 Chores& chores) {
  bool changed = false;
  for (auto& [id, arena] : records.arenas) {
    for (auto it = arena.regions.begin(); it != arena.regions.end();) {
      const auto current = it++;
      if (current->second.users.erase(sandbox_id) == 0) continue;
      changed = true;
      if (IsDamaged(current->first) && current->second.idle())
        DropRegion(records, arena, std::string(current->first), chores);
    }
  }
  for (auto it = records.disks.begin(); it != records.disks.end();) {
    const auto current = it++;
    changed = current->second.users.erase(sandbox_id) != 0 || changed;
    DropIfUnusedBlob(records, options, std::string(current->first), chores);  // its owner may delete it now
  }
  if (changed) ++records.version;
  return changed;
}

// The VM cannot have a region cached that it was never told of: it is not held for the VM's life.
void UndoPlacement(LayerRecords& records, const StoreOptions& options, const std::string& sandbox_id,
                   const Placement& placement, Chores& chores) {
  if (!placement.new_user) return;
  ++records.version;
  if (placement.kind == PlacementKind::kVpmem) {
    const auto arena = records.arenas.find(placement.arena_id);
    if (arena == records.arenas.end()) return;
    const auto it = arena->second.regions.find(placement.layer_id);
    if (it != arena->second.regions.end() && it->second.region.offset == placement.offset)
      it->second.users.erase(sandbox_id);
    return;
  }
  const std::string key = DiskKey(options.dir, placement.layer_id, placement.image_path);
  const auto it = records.disks.find(key);
  if (it == records.disks.end()) return;
  it->second.users.erase(sandbox_id);
  DropIfUnusedBlob(records, options, key, chores);
}

std::set<std::string> AllUsers(const LayerRecords& records) {
  std::set<std::string> users;
  for (const auto& [id, arena] : records.arenas) {
    for (const auto& [digest, region] : arena.regions) users.insert(region.users.begin(), region.users.end());
  }
  for (const auto& [key, disk] : records.disks) users.insert(disk.users.begin(), disk.users.end());
  return users;
}

void DropRegion(LayerRecords& records, ArenaRecord& arena, const std::string& digest, Chores& chores) {
  const auto it = arena.regions.find(digest);
  if (it == arena.regions.end()) return;
  const Region& region = it->second.region;
  chores.punches.push_back({arena.id, {arena.path, region.offset, region.held_bytes}, region.handle});
  ++arena.punching;
  arena.regions.erase(it);
  ++records.version;
}

void DropDisk(LayerRecords& records, const StoreOptions& options, const std::string& key, Chores& chores) {
  const auto it = records.disks.find(key);
  if (it == records.disks.end()) return;
  Chores::DiskFiles files{it->second.digest, {}};
  if (IsOurs(options.dir, it->second.path)) files.paths.push_back(it->second.path);
  records.disks.erase(it);
  ++records.version;
  const bool other = std::any_of(records.disks.begin(), records.disks.end(),
                                 [&](const auto& item) { return item.second.digest == files.digest; });
  if (options.scsi_verity && !other) files.paths.push_back(TreePath(options.dir, files.digest));
  if (files.paths.empty()) return;
  records.busy_disks.insert(files.digest);
  chores.disks.push_back(std::move(files));
}

void DropEmptyArenas(LayerRecords& records, Chores& chores) {
  for (auto it = records.arenas.begin(); it != records.arenas.end();) {
    if (!it->second.regions.empty()) {
      ++it;
      continue;
    }
    // Its file goes whole: what is being punched there needs no second look.
    chores.arena_files.push_back(it->second.path);
    it = records.arenas.erase(it);
    ++records.version;
  }
}

void Unpin(LayerRecords& records, const std::string& arena_id, const Handle& handle, Chores& chores) {
  ArenaRecord& arena = records.arenas.at(arena_id);
  for (auto& [name, region] : arena.regions) {
    if (region.region.handle != handle) continue;
    --region.pins;
    if (IsDamaged(name) && region.idle()) DropRegion(records, arena, std::string(name), chores);
    return;
  }
}

void MarkDamaged(LayerRecords& records, ArenaRecord& arena, const std::string& digest, Chores& chores) {
  const auto it = arena.regions.find(digest);
  --it->second.pins;
  if (it->second.idle()) return DropRegion(records, arena, digest, chores);
  RegionRecord damaged = std::move(it->second);
  damaged.last_use = 0;
  arena.regions.erase(it);
  arena.regions[fmt::format("{}{}-{}", kDamaged, digest, records.use_clock++)] = std::move(damaged);
  ++records.version;
}

bool EvictOne(LayerRecords& records, ArenaRecord& arena, Chores& chores) {
  auto oldest = arena.regions.end();
  for (auto it = arena.regions.begin(); it != arena.regions.end(); ++it) {
    if (!it->second.idle()) continue;
    if (oldest == arena.regions.end() || it->second.last_use < oldest->second.last_use) oldest = it;
  }
  if (oldest == arena.regions.end()) return false;
  DropRegion(records, arena, std::string(oldest->first), chores);
  return true;
}

Dropped DropIdle(LayerRecords& records, const StoreOptions& options, uint64_t keep_bytes, Chores& chores) {
  Dropped dropped;
  for (;;) {
    uint64_t idle = 0, oldest_use = UINT64_MAX;
    ArenaRecord* oldest_arena = nullptr;
    std::string oldest;
    for (auto& [id, arena] : records.arenas) {
      for (const auto& [digest, region] : arena.regions) {
        if (!region.idle()) continue;
        idle += region.region.held_bytes;
        if (region.last_use < oldest_use)
          oldest_use = region.last_use, oldest_arena = &arena, oldest = digest;
      }
    }
    for (const auto& [key, disk] : records.disks) {
      if (!disk.idle() || records.busy_disks.count(disk.digest) != 0) continue;
      idle += disk.bytes;
      if (disk.last_use < oldest_use) oldest_use = disk.last_use, oldest_arena = nullptr, oldest = key;
    }
    if (oldest.empty() || idle <= keep_bytes) break;
    if (oldest_arena != nullptr) {
      dropped.bytes += oldest_arena->regions.at(oldest).region.held_bytes;
      DropRegion(records, *oldest_arena, oldest, chores);
    } else {
      dropped.bytes += records.disks.at(oldest).bytes;
      DropDisk(records, options, oldest, chores);
    }
    ++dropped.layers;
  }
  DropEmptyArenas(records, chores);
  return dropped;
}

void ForgetSources(LayerRecords& records) {
  std::set<std::string> kept;
  for (const auto& [id, arena] : records.arenas) {
    for (const auto& [digest, region] : arena.regions) kept.insert(digest);
  }
  for (const auto& [key, disk] : records.disks) kept.insert(disk.digest);
  for (auto it = records.digests.begin(); it != records.digests.end();)
    it = kept.count(it->second) == 0 ? records.digests.erase(it) : std::next(it);
}

void Settle(LayerRecords& records, const Chores& chores) {
  for (const Chores::Punch& punch : chores.punches) {
    const auto it = records.arenas.find(punch.arena_id);
    if (it == records.arenas.end()) continue;
    --it->second.punching;
    it->second.pool->Release(punch.handle).IgnoreError();
  }
  for (const Chores::DiskFiles& disk : chores.disks) records.busy_disks.erase(disk.digest);
}

}  // namespace lamina::layers
