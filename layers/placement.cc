#include "layers/placement.h"

#include <algorithm>

#include "base/status.h"
#include "layers/layer_book.h"

namespace lamina::layers {
namespace {

// Whether the VM sees the region, or can take one more window to see it, which it then takes.
bool Reach(Devices& devices, const ArenaRecord& arena, const Region& region) {
  const auto it = devices.windows.find(arena.id);
  if (it != devices.windows.end() && EndOf(region) <= it->second) return true;
  if (devices.free == 0) return false;
  --devices.free;
  devices.windows[arena.id] = arena.bytes;  // SetWindows says how large it really is
  return true;
}

uint64_t InSteps(uint64_t bytes) { return (bytes + kWindowStep - 1) / kWindowStep * kWindowStep; }

// Whether the domain may have an arena more.
bool MayGrow(const LayerRecords& records, const StoreOptions& options, const std::string& domain) {
  if (options.max_arenas_per_domain == 0) return true;
  const auto have = std::count_if(records.arenas.begin(), records.arenas.end(),
                                  [&](const auto& item) { return item.second.domain == domain; });
  return static_cast<size_t>(have) < options.max_arenas_per_domain;
}

absl::StatusOr<Room> RoomInNewArena(LayerRecords& records, const StoreOptions& options,
                                    const RoomRequest& request, Devices& devices) {
  ArenaRecord arena;
  const auto id = [&] { return fmt::format("arena-{}", records.next_arena); };
  while (records.arenas.count(id()) != 0) ++records.next_arena;  // whatever an index said
  arena.id = id();
  arena.domain = request.domain;
  arena.path = ArenaPath(options.dir, arena.id);
  arena.bytes = options.arena_bytes;
  arena.policy = options.policy;
  ASSIGN_OR_RETURN(arena.pool, MakeAllocator(options.policy, options.arena_bytes));
  Room room;
  absl::StatusOr<Region> found = arena.pool->Allocate(request.bytes);
  if (!found.ok()) {
    room.why_not = Message(found.status());
    return room;
  }
  Reach(devices, arena, *found);
  ++records.next_arena;
  room.kind = Room::Kind::kNewArena;
  room.region = *found;
  room.arena = &(records.arenas[arena.id] = std::move(arena));
  return room;
}

}  // namespace

FoundRegion FindRegion(LayerRecords& records, const std::string& domain, const std::string& digest,
                       Devices& devices) {
  for (const bool attached : {true, false}) {
    for (auto& [id, arena] : records.arenas) {
      if (arena.domain != domain || (devices.windows.count(id) != 0) != attached) continue;
      const auto it = arena.regions.find(digest);
      if (it == arena.regions.end() || !it->second.ready || !Reach(devices, arena, it->second.region))
        continue;
      return {&arena, &it->second};
    }
  }
  return {};
}

absl::StatusOr<Room> FindRoom(LayerRecords& records, const StoreOptions& options, const RoomRequest& request,
                              Devices& devices, Chores& chores) {
  Room room;
  for (const bool evict : {false, true}) {
    bool later = false;
    for (const bool attached : {true, false}) {
      for (auto& [id, arena] : records.arenas) {
        if (arena.domain != request.domain || (devices.windows.count(id) != 0) != attached ||
            (!attached && devices.free == 0))
          continue;
        if (!arena.created) {
          later = true;
          continue;
        }
        const absl::StatusOr<Region> found = arena.pool->Allocate(request.bytes);
        if (found.ok()) {
          if (!Reach(devices, arena, *found)) {  // beyond what the VM sees
            arena.pool->Release(found->handle).IgnoreError();
            continue;
          }
          room.kind = Room::Kind::kFound;
          room.arena = &arena;
          room.region = *found;
          return room;
        }
        if (found.status().code() != absl::StatusCode::kResourceExhausted) {
          room.why_not = Message(found.status());
          return room;
        }
        later = later || arena.punching > 0;
        if (!evict || !EvictOne(records, arena, chores)) continue;
        room.kind = Room::Kind::kAfterChores;
        return room;
      }
    }
    if (later) {
      room.kind = Room::Kind::kLater;
      return room;
    }
    if (!evict && devices.free > 0 && MayGrow(records, options, request.domain))
      return RoomInNewArena(records, options, request, devices);
  }
  room.why_not = devices.free == 0 ? "no room in the attached arenas and no device slot for another"
                                   : "no room in the domain's arenas";
  return room;
}

void SetWindows(const LayerRecords& records, const std::map<std::string, uint64_t>& attached,
                std::vector<Placement>& placements) {
  std::map<std::string, uint64_t> ends;
  for (const Placement& p : placements) {
    if (p.kind != PlacementKind::kVpmem) continue;
    uint64_t& end = ends[p.arena_id];
    end = std::max(end, EndOf({{}, p.offset, p.held_bytes, p.payload_bytes}));
  }
  for (Placement& p : placements) {
    if (p.kind != PlacementKind::kVpmem) continue;
    const auto had = attached.find(p.arena_id);
    const uint64_t before = had == attached.end() ? 0 : had->second;
    const uint64_t end = ends[p.arena_id];
    // A second window on the same arena is at least twice the first, so that a VM needs few of them.
    p.arena_bytes = end <= before
                        ? before
                        : std::min(records.arenas.at(p.arena_id).bytes, std::max(InSteps(end), 2 * before));
  }
}

std::vector<ArenaInfo> DescribeArenas(const LayerRecords& records) {
  std::vector<ArenaInfo> all;
  for (const auto& [id, arena] : records.arenas) {
    if (!arena.created) continue;
    const PoolStats stats = arena.pool->stats();
    ArenaInfo info;
    info.id = id;
    info.domain = arena.domain;
    info.path = arena.path;
    info.bytes = arena.bytes;
    info.held_bytes = stats.held_bytes;
    info.payload_bytes = stats.payload_bytes;
    for (const auto& [digest, region] : arena.regions) {
      const uint64_t end = InSteps(EndOf(region.region));
      info.window_bytes = std::min(arena.bytes, std::max(info.window_bytes, end));
      info.regions.push_back({digest, region.region.offset, region.region.held_bytes,
                              region.region.payload_bytes, region.users});
    }
    std::sort(info.regions.begin(), info.regions.end(),
              [](const auto& a, const auto& b) { return a.offset < b.offset; });
    all.push_back(std::move(info));
  }
  return all;
}

std::vector<DiskInfo> DescribeDisks(const LayerRecords& records) {
  std::vector<DiskInfo> all;
  for (const auto& [key, disk] : records.disks)
    all.push_back({disk.digest, disk.path, disk.why, disk.tree.root_hash, disk.bytes, disk.users});
  return all;
}

}  // namespace lamina::layers
