#include "layers/layer_store.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "base/status.h"
#include "base/units.h"
#include "layers/arena_file.h"
#include "layers/layer_store_types.h"

namespace lamina::layers {
namespace {

using std::chrono::steady_clock;

double SecondsSince(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

// Snapshots never change once they are layers: path, inode and birth time name the content.
absl::StatusOr<std::string> SourceKey(const std::string& source, bool& is_directory) {
  struct statx info {};
  if (statx(AT_FDCWD, source.c_str(), AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, &info) != 0) {
    return ErrnoStatus(errno, "layer " + source);
  }
  is_directory = S_ISDIR(info.stx_mode);
  if (!is_directory && !S_ISREG(info.stx_mode))
    return InvalidArgument("layer {}: neither a directory nor an image file", source);
  return fmt::format("{}|{}:{}|{}|{}.{:09}", source, info.stx_dev_major, info.stx_dev_minor, info.stx_ino,
                     info.stx_btime.tv_sec, info.stx_btime.tv_nsec);
}

}  // namespace

LayerStore::LayerStore(FileSystem& fs, StoreOptions options, Maker maker)
    : fs_(fs), options_(std::move(options)), maker_(std::move(maker)) {}

LayerStore::~LayerStore() = default;

absl::StatusOr<std::unique_ptr<LayerStore>> LayerStore::Open(FileSystem& fs, StoreOptions options,
                                                             Maker maker) {
  ASSIGN_OR_RETURN(const auto probe, MakeAllocator(options.policy, options.arena_bytes));
  if (!maker) {
    maker = [timeout = options.convert_timeout](const std::string& directory, const std::string& image) {
      return MakeErofsImage(directory, image, timeout);
    };
  }
  std::unique_ptr<LayerStore> store(new LayerStore(fs, std::move(options), std::move(maker)));
  RETURN_IF_ERROR(store->Load());
  return store;
}

std::string LayerStore::KnownDigestLocked(const std::string& key) const {
  const auto it = digests_.find(key);
  return it == digests_.end() ? std::string() : it->second;
}

bool LayerStore::CanUse(const PlaceRequest& request, const std::string& arena_id) const {
  return request.attached_arenas.count(arena_id) != 0 || request.free_arena_slots > 0;
}

// Finds the layer in the domain; `verify` says that it was not checked since this process started.
bool LayerStore::UseRegionLocked(const PlaceRequest& request, const std::string& digest, Placement& placement,
                                 bool& verify) {
  for (const bool attached : {true, false}) {
    for (auto& [id, arena] : arenas_) {
      if (arena->domain != request.domain || (request.attached_arenas.count(id) != 0) != attached ||
          !CanUse(request, id))
        continue;
      const auto it = arena->regions.find(digest);
      if (it == arena->regions.end() || !it->second.ready) continue;
      Entry& entry = it->second;
      entry.users.insert(request.sandbox_id);
      entry.last_use = use_clock_++;
      verify = !entry.verified;
      placement.layer_id = digest;
      placement.kind = PlacementKind::kVpmem;
      placement.arena_id = id;
      placement.arena_path = arena->path;
      placement.arena_bytes = arena->bytes;
      placement.offset = entry.region.offset;
      placement.held_bytes = entry.region.held_bytes;
      placement.payload_bytes = entry.region.payload_bytes;
      return true;
    }
  }
  return false;
}

bool LayerStore::UseDiskLocked(const PlaceRequest& request, const std::string& digest, Placement& placement) {
  const auto it = disks_.find(digest);
  if (it == disks_.end()) return false;
  it->second->users.insert(request.sandbox_id);
  it->second->last_use = use_clock_++;
  placement.layer_id = digest;
  placement.kind = PlacementKind::kScsi;
  placement.image_path = it->second->path;
  placement.payload_bytes = it->second->bytes;
  return true;
}

absl::StatusOr<Image> LayerStore::Obtain(const std::string& source, const std::string& key,
                                         Placement& placement) {
  bool is_directory = false;
  ASSIGN_OR_RETURN(const std::string key_now, SourceKey(source, is_directory));
  if (!is_directory) return ExamineErofsImage(source);
  std::string temp, copy_from, digest;
  uint64_t offset = 0, bytes = 0;
  {
    MutexLock lock(mutex_);
    temp = fmt::format("{}/{}.part", options_.dir, next_temp_++);
    digest = KnownDigestLocked(key);
    // Another domain's copy saves the conversion.
    for (const auto& [id, arena] : arenas_) {
      const auto it = digest.empty() ? arena->regions.end() : arena->regions.find(digest);
      if (it == arena->regions.end() || !it->second.ready) continue;
      copy_from = arena->path;
      offset = it->second.region.offset;
      bytes = it->second.region.payload_bytes;
      it->second.users.insert("copying " + temp);
    }
    ++counters_.converting;
  }
  const auto start = steady_clock::now();
  absl::StatusOr<Image> image = absl::NotFoundError("");
  if (!copy_from.empty() && CopyFromArena(copy_from, offset, bytes, temp).ok()) {
    image = ExamineErofsImage(temp);
    if (image.ok() && image->digest != digest) {
      fs_.Remove(temp).IgnoreError();
      image = absl::DataLossError("copied region differs");
    }
  }
  const bool copied = image.ok();
  if (!copied) image = maker_(source, temp);
  placement.convert_seconds = SecondsSince(start);
  MutexLock lock(mutex_);
  --counters_.converting;
  for (auto& [id, arena] : arenas_) {
    for (auto& [name, entry] : arena->regions) entry.users.erase("copying " + temp);
  }
  if (!image.ok()) {
    ++counters_.conversion_failures;
    return image.status();
  }
  if (!copied) {
    ++counters_.conversions;
    LogInfo("layer {} converted: {} bytes in {:.2f} s as {}", source, image->bytes, placement.convert_seconds,
            image->digest);
  }
  digests_[key] = image->digest;
  return image;
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
    if (!it->second.ready || !it->second.users.empty()) continue;
    if (oldest == arena.regions.end() || it->second.last_use < oldest->second.last_use) oldest = it;
  }
  if (oldest == arena.regions.end()) return false;
  DropRegionLocked(arena, std::string(oldest->first));
  ++counters_.evictions;
  return true;
}

LayerStore::Arena* LayerStore::FindRoomLocked(const PlaceRequest& request, uint64_t bytes, Region& region,
                                              std::string& why_not, absl::Status& error) {
  // What the VM has, then what the domain has; without eviction, then with it; a new arena comes before
  // evicting from one not attached.
  for (const bool evict : {false, true}) {
    for (const bool attached : {true, false}) {
      for (auto& [id, arena] : arenas_) {
        if (arena->domain != request.domain || (request.attached_arenas.count(id) != 0) != attached ||
            !CanUse(request, id))
          continue;
        do {
          absl::StatusOr<Region> found = arena->pool->Allocate(bytes);
          if (found.ok()) {
            region = *found;
            return arena.get();
          }
          if (found.status().code() != absl::StatusCode::kResourceExhausted) {
            why_not = Message(found.status());
            return nullptr;
          }
        } while (evict && EvictOneLocked(*arena));
      }
    }
    if (evict || request.free_arena_slots == 0) continue;
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
    if (found.ok()) {
      region = *found;
      return raw;
    }
  }
  why_not = request.free_arena_slots == 0 ? "no room in the attached arenas and no device slot for another"
                                          : "no room in the domain's arenas";
  return nullptr;
}

absl::StatusOr<Placement> LayerStore::PlaceInArena(const PlaceRequest& request, const Image& image,
                                                   Placement placement, std::string& why_not) {
  Region region;
  std::string arena_id, arena_path;
  {
    MutexLock lock(mutex_);
    bool verify = false;
    if (UseRegionLocked(request, image.digest, placement, verify)) {  // another source with the same content
      placement.reused = true;
      ++counters_.reuses;
      RETURN_IF_ERROR(SaveLocked());
      return placement;
    }
    absl::Status error;
    Arena* arena = FindRoomLocked(request, image.bytes, region, why_not, error);
    RETURN_IF_ERROR(error);
    if (arena == nullptr) return absl::ResourceExhaustedError("no room");
    Entry entry;
    entry.region = region;
    entry.users = {request.sandbox_id};
    entry.last_use = use_clock_++;
    arena->regions[image.digest] = entry;
    arena_id = arena->id;
    arena_path = arena->path;
    placement.arena_bytes = arena->bytes;
  }
  const auto start = steady_clock::now();
  absl::Status status = CopyIntoArena(arena_path, region.offset, image.path, image.bytes, image.digest);
  placement.copy_seconds = SecondsSince(start);
  MutexLock lock(mutex_);
  Arena& arena = *arenas_.at(arena_id);
  if (status.ok()) {
    Entry& entry = arena.regions.at(image.digest);
    entry.ready = entry.verified = true;
    status = SaveLocked();
  }
  if (!status.ok()) {
    DropRegionLocked(arena, image.digest);
    return status;
  }
  ++counters_.placed_vpmem;
  placement.layer_id = image.digest;
  placement.kind = PlacementKind::kVpmem;
  placement.arena_id = arena_id;
  placement.arena_path = arena_path;
  placement.offset = region.offset;
  placement.held_bytes = region.held_bytes;
  placement.payload_bytes = image.bytes;
  return placement;
}

absl::StatusOr<Placement> LayerStore::PlaceAsDisk(const PlaceRequest& request, const Image& image,
                                                  Placement placement) {
  MutexLock lock(mutex_);
  if (UseDiskLocked(request, image.digest, placement)) {
    placement.reused = true;
    ++counters_.reuses;
    RETURN_IF_ERROR(SaveLocked());
    return placement;
  }
  auto disk = std::make_unique<Disk>();
  const bool foreign =
      image.path.rfind(options_.dir + "/", 0) != 0;  // a blob of the snapshotter's: used where it is
  disk->path = foreign ? image.path : options_.dir + "/" + image.digest + ".erofs";
  disk->bytes = image.bytes;
  if (!foreign) RETURN_IF_ERROR(fs_.Rename(image.path, disk->path));
  disks_[image.digest] = std::move(disk);
  UseDiskLocked(request, image.digest, placement);
  if (const absl::Status status = SaveLocked(); !status.ok()) {
    if (!foreign) fs_.Remove(disks_[image.digest]->path).IgnoreError();
    disks_.erase(image.digest);
    return status;
  }
  ++counters_.placed_scsi;
  return placement;
}

absl::StatusOr<Placement> LayerStore::Place(const PlaceRequest& request) {
  if (request.sandbox_id.empty() || request.domain.empty())
    return absl::InvalidArgumentError("place: no sandbox or domain");
  bool is_directory = false;
  ASSIGN_OR_RETURN(const std::string key, SourceKey(request.source, is_directory));
  const std::string flight = request.domain + "|" + key;
  Placement placement;
  bool verify = false;
  {
    MutexLock lock(mutex_);
    while (flights_.count(flight) != 0) flight_ended_.Wait(mutex_);
    const std::string digest = KnownDigestLocked(key);
    const bool placed =
        !digest.empty() && ((options_.vpmem && UseRegionLocked(request, digest, placement, verify)) ||
                            UseDiskLocked(request, digest, placement));
    if (placed && !verify) {
      placement.reused = true;
      if (placement.kind == PlacementKind::kScsi) placement.why_scsi = "kept as a disk since its first use";
      ++counters_.reuses;
      RETURN_IF_ERROR(SaveLocked());
      return placement;
    }
    flights_.insert(flight);
  }
  struct Landing {
    LayerStore& store;
    const std::string& flight;
    ~Landing() {
      MutexLock lock(store.mutex_);
      store.flights_.erase(flight);
      store.flight_ended_.NotifyAll();
    }
  } landing{*this, flight};

  if (verify) {
    const absl::StatusOr<std::string> found =
        DigestOf(placement.arena_path, placement.offset, placement.payload_bytes);
    MutexLock lock(mutex_);
    Arena& arena = *arenas_.at(placement.arena_id);
    const auto it = arena.regions.find(placement.layer_id);
    if (found.ok() && *found == placement.layer_id && it != arena.regions.end()) {
      it->second.verified = true;
      placement.reused = true;
      ++counters_.reuses;
      RETURN_IF_ERROR(SaveLocked());
      return placement;
    }
    LogWarning("layer {} at {} of {} is damaged: it is rebuilt from {}", placement.layer_id, placement.offset,
               placement.arena_path, request.source);
    ++counters_.rebuilt;
    // Other VMs may have the damaged region mapped: its place is not given again while they live, only its
    // name is.
    if (it != arena.regions.end()) {
      it->second.users.erase(request.sandbox_id);
      if (it->second.users.empty()) {
        DropRegionLocked(arena, placement.layer_id);
      } else {
        Entry damaged = it->second;
        damaged.last_use = 0;
        arena.regions.erase(it);
        arena.regions["damaged-" + placement.layer_id + fmt::format("-{}", use_clock_++)] = damaged;
      }
    }
    digests_.erase(key);
    placement = Placement();
  }

  ASSIGN_OR_RETURN(const Image image, Obtain(request.source, key, placement));
  struct Temp {
    FileSystem& fs;
    std::string path;
    ~Temp() {
      if (!path.empty()) fs.Remove(path).IgnoreError();
    }
  } temp{fs_, image.path.rfind(options_.dir + "/", 0) == 0 ? image.path : std::string()};

  std::string why_scsi;
  if (!options_.vpmem) {
    why_scsi = "VPMem is switched off";
  } else if (image.bytes > options_.max_layer_bytes) {
    why_scsi = fmt::format("{} is over the maximum layer size of {}", FormatBytes(image.bytes),
                           FormatBytes(options_.max_layer_bytes));
  } else {
    absl::StatusOr<Placement> placed = PlaceInArena(request, image, placement, why_scsi);
    if (placed.ok() || why_scsi.empty()) return placed;
  }
  placement.why_scsi = why_scsi;
  return PlaceAsDisk(request, image, placement);
}

absl::Status LayerStore::ReleaseSandbox(const std::string& sandbox_id) {
  MutexLock lock(mutex_);
  bool changed = false;
  for (auto& [id, arena] : arenas_) {
    for (auto it = arena->regions.begin(); it != arena->regions.end();) {
      const auto current = it++;
      if (current->second.users.erase(sandbox_id) == 0) continue;
      changed = true;
      if (current->second.users.empty() && current->first.rfind("damaged-", 0) == 0)
        DropRegionLocked(*arena, std::string(current->first));
    }
  }
  for (auto& [digest, disk] : disks_) changed = disk->users.erase(sandbox_id) != 0 || changed;
  if (!changed) return absl::OkStatus();
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
        if (!entry.ready || !entry.users.empty()) continue;
        idle += entry.region.held_bytes;
        if (entry.last_use < oldest_use)
          oldest_use = entry.last_use, oldest_arena = arena.get(), oldest = digest;
      }
    }
    for (const auto& [digest, disk] : disks_) {
      if (!disk->users.empty()) continue;
      idle += disk->bytes;
      if (disk->last_use < oldest_use) oldest_use = disk->last_use, oldest_arena = nullptr, oldest = digest;
    }
    if (oldest.empty() || idle <= keep_bytes) break;
    if (oldest_arena != nullptr) {
      freed += oldest_arena->regions.at(oldest).region.held_bytes;
      DropRegionLocked(*oldest_arena, oldest);
    } else {
      Disk& disk = *disks_.at(oldest);
      freed += disk.bytes;
      if (disk.path.rfind(options_.dir + "/", 0) == 0) fs_.Remove(disk.path).IgnoreError();
      disks_.erase(oldest);
    }
    ++counters_.evictions;
  }
  for (auto it = arenas_.begin(); it != arenas_.end();) {
    if (keep_bytes == 0 && it->second->regions.empty()) {
      fs_.Remove(it->second->path).IgnoreError();
      it = arenas_.erase(it);
    } else {
      ++it;
    }
  }
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
    ArenaInfo info{id, arena->domain, arena->path, arena->bytes, stats.held_bytes, stats.payload_bytes, {}};
    for (const auto& [digest, entry] : arena->regions) {
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
  for (const auto& [digest, disk] : disks_) all.push_back({digest, disk->path, disk->bytes, disk->users});
  return all;
}

StoreCounters LayerStore::counters() const {
  MutexLock lock(mutex_);
  return counters_;
}

}  // namespace lamina::layers
