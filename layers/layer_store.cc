#include "layers/layer_store.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "base/log.h"
#include "base/status.h"
#include "base/units.h"
#include "layers/arena_file.h"
#include "layers/layer_records.h"

namespace lamina::layers {
namespace {

using std::chrono::steady_clock;

double SecondsSince(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

// Snapshots never change once they are layers: path, inode and birth time name the content. A file could be
// written again: its size and times belong to the name.
absl::StatusOr<std::string> SourceKey(const std::string& source, bool& is_directory) {
  struct statx info {};
  if (statx(AT_FDCWD, source.c_str(), AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, &info) != 0) {
    return ErrnoStatus(errno, "layer " + source);
  }
  is_directory = S_ISDIR(info.stx_mode);
  if (!is_directory && !S_ISREG(info.stx_mode))
    return InvalidArgument("layer {}: neither a directory nor an image file", source);
  std::string key = fmt::format("{}|{}:{}|{}|{}.{:09}", source, info.stx_dev_major, info.stx_dev_minor,
                                info.stx_ino, info.stx_btime.tv_sec, info.stx_btime.tv_nsec);
  if (!is_directory) {
    key += fmt::format("|{}|{}.{:09}|{}.{:09}", info.stx_size, info.stx_mtime.tv_sec, info.stx_mtime.tv_nsec,
                       info.stx_ctime.tv_sec, info.stx_ctime.tv_nsec);
  }
  return key;
}

std::string DiskKey(const std::string& digest, const std::string& path) { return digest + "@" + path; }

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

absl::StatusOr<Placement> LayerStore::Place(const PlaceRequest& request) {
  Devices devices{request.attached_arenas, request.free_arena_slots, false};
  ASSIGN_OR_RETURN(Placement placement, PlaceOne(request, devices));
  std::vector<Placement> one = {std::move(placement)};
  MutexLock lock(mutex_);
  SetWindowsLocked(request, one);
  return std::move(one[0]);
}

absl::StatusOr<Placement> LayerStore::PlaceOne(const PlaceRequest& request, Devices& devices) {
  if (request.sandbox_id.empty() || request.domain.empty())
    return absl::InvalidArgumentError("place: no sandbox or domain");
  bool is_directory = false;
  ASSIGN_OR_RETURN(const std::string key, SourceKey(request.source, is_directory));
  const auto flight = std::make_shared<Flight>();
  {
    MutexLock lock(mutex_);
    for (;;) {
      const auto it = flights_.find(key);
      if (it == flights_.end()) break;
      const std::shared_ptr<Flight> other = it->second;
      while (!other->landed) {
        if (request.deadline == steady_clock::time_point::max()) {
          flight_ended_.Wait(mutex_);
        } else if (!flight_ended_.WaitUntil(mutex_, request.deadline) && !other->landed) {
          return MakeStatus(absl::StatusCode::kDeadlineExceeded, "layer {}: still being converted",
                            request.source);
        }
      }
      if (!other->error.ok()) return other->error;
    }
    flights_[key] = flight;
  }
  absl::StatusOr<Placement> placed = PlaceAlone(request, devices, key, is_directory);
  MutexLock lock(mutex_);
  flight->landed = true;
  flight->error = placed.status();
  flights_.erase(key);
  flight_ended_.NotifyAll();
  return placed;
}

absl::StatusOr<Placement> LayerStore::PlaceAlone(const PlaceRequest& request, Devices& devices,
                                                 const std::string& key, bool is_directory) {
  Placement placement;
  std::string known, why_scsi;
  {
    MutexLock lock(mutex_);
    known = KnownDigestLocked(key);
  }
  if (options_.vpmem && !known.empty()) {
    ASSIGN_OR_RETURN(const bool found, PlaceInArena(request, devices, known, nullptr, placement, why_scsi));
    if (found) return placement;
  }
  ASSIGN_OR_RETURN(Obtained obtained, Obtain(request, key, is_directory, placement));
  struct Cleanup {
    LayerStore& store;
    Obtained& obtained;
    ~Cleanup() {
      for (const std::string& path : {obtained.temporary, obtained.temporary_tree}) {
        if (!path.empty()) store.fs_.Remove(path).IgnoreError();
      }
      if (obtained.pinned.empty()) return;
      MutexLock lock(store.mutex_);
      --store.disks_.at(obtained.pinned)->pins;
    }
  } cleanup{*this, obtained};

  const uint64_t bytes = obtained.image.bytes,
                 most = std::min(options_.max_layer_bytes, options_.arena_bytes);
  if (!options_.vpmem) {
    why_scsi = "VPMem is switched off";
  } else if (bytes > most) {
    why_scsi = fmt::format("{} is over the maximum layer size of {}", FormatBytes(bytes), FormatBytes(most));
  } else {
    ASSIGN_OR_RETURN(const bool placed,
                     PlaceInArena(request, devices, obtained.image.digest, &obtained, placement, why_scsi));
    if (placed) return placement;
  }
  placement.why_scsi = why_scsi;
  if (options_.scsi_verity) RETURN_IF_ERROR(AddTree(obtained));
  return PlaceAsDisk(request, devices, obtained, placement);
}

bool LayerStore::CopyFromOtherDomain(const std::string& digest, const std::string& to, Image& image) {
  std::string arena_id, from;
  Region region;
  {
    MutexLock lock(mutex_);
    for (const auto& [id, arena] : arenas_) {
      const auto it = arena->regions.find(digest);
      if (it == arena->regions.end() || !it->second.ready) continue;
      arena_id = id;
      from = arena->path;
      region = it->second.region;
      ++it->second.pins;
      break;
    }
  }
  if (arena_id.empty()) return false;
  bool copied = CopyFromArena(from, region.offset, region.payload_bytes, to).ok();
  if (copied) {
    absl::StatusOr<Image> found = ExamineErofsImage(to);
    copied = found.ok() && found->digest == digest;
    if (copied) {
      image = std::move(*found);
    } else {
      fs_.Remove(to).IgnoreError();
    }
  }
  MutexLock lock(mutex_);
  for (auto& [name, entry] : arenas_.at(arena_id)->regions) {  // it may have been renamed as damaged
    if (entry.region.handle == region.handle) --entry.pins;
  }
  return copied;
}

absl::StatusOr<LayerStore::Obtained> LayerStore::Obtain(const PlaceRequest& request, const std::string& key,
                                                        bool is_directory, Placement& placement) {
  const std::string& source = request.source;
  Obtained result;
  std::string digest, temp;
  bool verified = false;
  {
    MutexLock lock(mutex_);
    temp = fmt::format("{}/{}.part", options_.dir, next_temp_++);
    digest = KnownDigestLocked(key);
    const auto disk = disks_.find(is_directory ? digest : DiskKey(digest, source));
    if (disk != disks_.end()) {
      ++disk->second->pins;
      result.pinned = disk->first;
      result.image = {disk->second->path, digest, disk->second->bytes};
      verified = disk->second->verified;
    }
  }
  if (!result.pinned.empty()) {
    if (!verified) {
      const absl::StatusOr<Image> found = ExamineErofsImage(result.image.path);
      verified = found.ok() && found->digest == digest;
    }
    MutexLock lock(mutex_);
    Disk& disk = *disks_.at(result.pinned);
    disk.verified = verified;
    if (verified) return result;
    LogWarning("layer image {} is damaged: it is rebuilt from {}", disk.path, source);
    ++counters_.rebuilt;
    --disk.pins;
    result = {};
  }
  if (!is_directory) {
    ASSIGN_OR_RETURN(result.image, ExamineErofsImage(source));
    // The key has the file's size and times: what changed without them was not written by anybody.
    if (!digest.empty() && result.image.digest != digest) {
      return MakeStatus(
          absl::StatusCode::kDataLoss,
          "layer {}: its sha256 was {} and is {}, though it was not written since: the disk has "
          "damaged it; remove the image and pull it again",
          source, digest, result.image.digest);
    }
    MutexLock lock(mutex_);
    digests_[key] = result.image.digest;
    return result;
  }
  ASSIGN_OR_RETURN(result.image, Convert(request, key, digest, temp, placement));
  result.temporary = temp;
  result.made = true;
  MutexLock lock(mutex_);
  digests_[key] = result.image.digest;
  return result;
}

absl::StatusOr<Image> LayerStore::Convert(const PlaceRequest& request, const std::string& key,
                                          const std::string& digest, const std::string& to,
                                          Placement& placement) {
  const std::string& source = request.source;
  {
    // All sandboxes' conversions share the cores; who waits here has the layer's flight, so nobody else
    // begins.
    MutexLock lock(mutex_);
    const size_t most = options_.max_conversions != 0
                            ? options_.max_conversions
                            : std::max<size_t>(2, std::thread::hardware_concurrency());
    while (converting_.size() >= most) flight_ended_.Wait(mutex_);
    converting_[to] = {source, steady_clock::now()};
    counters_.converting = converting_.size();
  }
  const auto start = steady_clock::now();
  absl::StatusOr<Image> image = Image();
  const bool copied = !digest.empty() && CopyFromOtherDomain(digest, to, *image);
  if (!copied) {
    image = maker_(source, to);
    // A snapshot that went meanwhile may have been read in part.
    bool is_directory = false;
    const absl::StatusOr<std::string> after = SourceKey(source, is_directory);
    if (image.ok() && (!after.ok() || *after != key)) {
      fs_.Remove(to).IgnoreError();
      image = MakeStatus(absl::StatusCode::kNotFound, "layer {} was removed while it was converted", source);
    }
  }
  placement.convert_seconds = SecondsSince(start);
  MutexLock lock(mutex_);
  converting_.erase(to);
  counters_.converting = converting_.size();
  flight_ended_.NotifyAll();
  if (!image.ok()) {
    ++counters_.conversion_failures;
    return image.status();
  }
  if (!copied) {
    ++counters_.conversions;
    LogInfo("layer {} converted: {} bytes in {:.2f} s as {}", source, image->bytes, placement.convert_seconds,
            image->digest);
  }
  return image;
}

std::vector<ConversionInfo> LayerStore::conversions() const {
  std::map<std::string, Conversion> now;
  {
    MutexLock lock(mutex_);
    now = converting_;
  }
  std::vector<ConversionInfo> all;
  for (const auto& [path, conversion] : now) {
    struct stat info {};
    const bool there = stat(path.c_str(), &info) == 0;
    all.push_back(
        {conversion.source, SecondsSince(conversion.start), there ? static_cast<uint64_t>(info.st_size) : 0});
  }
  return all;
}

void LayerStore::LogProgress() const {
  for (const ConversionInfo& one : conversions()) {
    if (one.seconds < 10) continue;
    LogInfo("layer {}: being converted for {:.0f} s, {} MiB of its image written", one.source, one.seconds,
            one.bytes >> 20);
  }
}

bool LayerStore::CheckRegion(const PlaceRequest& request, const Placement& placement) {
  const absl::StatusOr<std::string> found =
      DigestOf(placement.arena_path, placement.offset, placement.payload_bytes);
  MutexLock lock(mutex_);
  // Another may have seen the damage, or this sandbox's release come meanwhile.
  const auto arena_it = arenas_.find(placement.arena_id);
  if (arena_it == arenas_.end()) return false;
  Arena& arena = *arena_it->second;
  const auto it = arena.regions.find(placement.layer_id);
  if (it == arena.regions.end() || it->second.region.offset != placement.offset) return false;
  if (found.ok() && *found == placement.layer_id) {
    it->second.verified = true;
    return true;
  }
  LogWarning("layer {} at {} of {} is damaged: it is rebuilt from {}", placement.layer_id, placement.offset,
             placement.arena_path, request.source);
  ++counters_.rebuilt;
  // Other VMs may have it mapped: its place is not given again while they live, only its name is.
  it->second.users.erase(request.sandbox_id);
  if (it->second.idle()) {
    DropRegionLocked(arena, placement.layer_id);
  } else {
    Entry damaged = std::move(it->second);
    damaged.last_use = 0;
    arena.regions.erase(it);
    arena.regions[fmt::format("{}{}-{}", kDamaged, placement.layer_id, use_clock_++)] = std::move(damaged);
  }
  return false;
}

absl::StatusOr<bool> LayerStore::PlaceInArena(const PlaceRequest& request, Devices& devices,
                                              const std::string& digest, const Obtained* obtained,
                                              Placement& placement, std::string& why_not) {
  const std::string tag = digest + "|" + request.domain;
  for (;;) {
    {
      MutexLock lock(mutex_);
      while (filling_.count(tag) != 0) flight_ended_.Wait(mutex_);
      Arena* arena = nullptr;
      Region region;
      Entry* entry = FindRegionLocked(request, devices, digest, arena);
      const bool found = entry != nullptr;
      if (!found) {
        if (obtained == nullptr) return false;
        absl::Status error;
        arena = FindRoomLocked(request, devices, obtained->image.bytes, region, why_not, error);
        RETURN_IF_ERROR(error);
        if (arena == nullptr) return false;
        entry = &arena->regions[digest];
        entry->region = region;
        filling_.insert(tag);
      }
      entry->last_use = use_clock_++;
      placement.layer_id = digest;
      placement.kind = PlacementKind::kVpmem;
      placement.arena_id = arena->id;
      placement.arena_path = arena->path;
      placement.offset = entry->region.offset;
      placement.held_bytes = entry->region.held_bytes;
      placement.payload_bytes = entry->region.payload_bytes;
      placement.reused = found && (obtained == nullptr || !obtained->made);
      placement.new_user = placement.new_user || entry->users.count(request.sandbox_id) == 0;
      if (found && entry->verified) {
        RETURN_IF_ERROR(UseLocked(devices, entry->users, request.sandbox_id));
        return true;
      }
      entry->users.insert(request.sandbox_id);
      if (!found) break;
    }
    // Not looked at since this process started.
    if (!CheckRegion(request, placement)) continue;
    MutexLock lock(mutex_);
    ++counters_.reuses;
    RETURN_IF_ERROR(SaveFor(devices));
    return true;
  }
  return FillRegion(request, devices, obtained->image, placement);
}

absl::StatusOr<bool> LayerStore::FillRegion(const PlaceRequest& request, const Devices& devices,
                                            const Image& image, Placement& placement) {
  const auto start = steady_clock::now();
  absl::Status status =
      CopyIntoArena(placement.arena_path, placement.offset, image.path, 0, image.bytes, image.digest);
  placement.copy_seconds = SecondsSince(start);
  MutexLock lock(mutex_);
  Arena& arena = *arenas_.at(placement.arena_id);
  if (status.ok()) {
    Entry& entry = arena.regions.at(image.digest);
    entry.ready = entry.verified = true;
    status = SaveFor(devices);
  }
  filling_.erase(image.digest + "|" + request.domain);
  flight_ended_.NotifyAll();
  if (!status.ok()) {
    DropRegionLocked(arena, image.digest);
    DropEmptyArenasLocked();
    return status;
  }
  ++counters_.placed_vpmem;
  return true;
}

absl::Status LayerStore::AddTree(Obtained& obtained) {
  std::string to;
  {
    MutexLock lock(mutex_);
    if (!obtained.pinned.empty()) obtained.tree = disks_.at(obtained.pinned)->tree;
    if (!obtained.tree.root_hash.empty()) return absl::OkStatus();
    to = fmt::format("{}/{}.part", options_.dir, next_temp_++);
  }
  ASSIGN_OR_RETURN(obtained.tree, MakeVerityTree(obtained.image, to));
  obtained.temporary_tree = to;
  return absl::OkStatus();
}

absl::StatusOr<Placement> LayerStore::PlaceAsDisk(const PlaceRequest& request, const Devices& devices,
                                                  Obtained& obtained, Placement placement) {
  MutexLock lock(mutex_);
  const Image& image = obtained.image;
  // Our image is known by its content; a snapshotter's blob is used where it is, for as long as it is there.
  const bool ours = Ours(image.path);
  const std::string key = ours ? image.digest : DiskKey(image.digest, image.path);
  placement.layer_id = image.digest;
  placement.kind = PlacementKind::kScsi;
  placement.payload_bytes = image.bytes;
  placement.reused = !obtained.made;
  auto it = disks_.find(key);
  const bool fresh = it == disks_.end();
  if (fresh) {
    auto disk = std::make_unique<Disk>();
    disk->digest = image.digest;
    disk->path = ours ? options_.dir + "/" + image.digest + ".erofs" : image.path;
    disk->bytes = image.bytes;
    disk->why = placement.why_scsi;
    it = disks_.emplace(key, std::move(disk)).first;
    ++counters_.placed_scsi;
  }
  Disk& disk = *it->second;
  placement.new_user = disk.users.count(request.sandbox_id) == 0;
  absl::Status status;
  if (!obtained.temporary.empty() && (fresh || !disk.verified)) {
    status = fs_.Rename(obtained.temporary, disk.path);  // also over one that was found damaged
    if (status.ok()) obtained.temporary.clear();
  }
  // Equal images have equal trees: whoever has the other one open reads the same.
  if (status.ok() && !obtained.temporary_tree.empty()) {
    status = fs_.Rename(obtained.temporary_tree, TreePath(disk.digest));
    if (status.ok()) obtained.temporary_tree.clear();
  }
  if (status.ok()) {
    disk.verified = true;
    disk.last_use = use_clock_++;
    placement.image_path = disk.path;
    disk.tree = placement.tree = obtained.tree;
    if (!disk.tree.root_hash.empty()) placement.tree_path = TreePath(disk.digest);
    if (fresh) {
      disk.users = {request.sandbox_id};
      status = SaveFor(devices);
    } else {
      status = UseLocked(devices, disk.users, request.sandbox_id);
    }
  }
  if (status.ok()) return placement;
  if (fresh) {
    --counters_.placed_scsi;
    DropDiskLocked(key);
  }
  return status;
}

}  // namespace lamina::layers
