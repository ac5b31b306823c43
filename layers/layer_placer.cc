#include "layers/layer_placer.h"

#include <algorithm>
#include <chrono>

#include "base/log.h"
#include "base/status.h"
#include "base/units.h"
#include "layers/digest.h"
#include "layers/layer_book.h"

namespace lamina::layers {

absl::StatusOr<Placement> LayerPlacer::Place(PlaceCall& call, const std::string& path) {
  if (call.sandbox_id.empty() || call.domain.empty())
    return absl::InvalidArgumentError("place: no sandbox or domain");
  ASSIGN_OR_RETURN(const LayerSource source, DescribeSource(path));
  // Before the first look at the book: while it is held, an image that another has made is not made again.
  const std::unique_ptr<Conversions::Ticket> ticket = parts_.conversions.Join(source.key, call.domain);
  Placement placement;
  Wanted wanted{source, "", nullptr, false, ""};
  {
    MutexLock lock(parts_.mutex);
    const auto it = parts_.records.digests.find(source.key);
    if (it != parts_.records.digests.end()) wanted.digest = it->second;
  }
  if (parts_.options.vpmem && !wanted.digest.empty()) {
    ASSIGN_OR_RETURN(const bool found, PlaceInArena(call, wanted, placement));
    if (found) return placement;
  }
  ASSIGN_OR_RETURN(const LayerImagePtr image, images_.Obtain(source, *ticket, call.patience));
  wanted.digest = image->image.digest;
  wanted.image = image.get();
  wanted.made_here = ticket->began() && image->made;
  if (wanted.made_here) placement.convert_seconds = image->convert_seconds;

  const uint64_t bytes = image->image.bytes,
                 most = std::min(parts_.options.max_layer_bytes, parts_.options.arena_bytes);
  if (!parts_.options.vpmem) {
    wanted.why_scsi = "VPMem is switched off";
  } else if (bytes > most) {
    wanted.why_scsi =
        fmt::format("{} is over the maximum layer size of {}", FormatBytes(bytes), FormatBytes(most));
  } else {
    // Its image is there: without room for a copy of it, it is the disk.
    const absl::StatusOr<DiskRoom::Share> room = parts_.RoomFor(bytes);
    if (absl::IsResourceExhausted(room.status())) {
      wanted.why_scsi = Message(room.status());
    } else {
      RETURN_IF_ERROR(room.status());
      ASSIGN_OR_RETURN(const bool placed, PlaceInArena(call, wanted, placement));
      if (placed) return placement;
    }
  }
  ASSIGN_OR_RETURN(Placement disk, PlaceAsDisk(call, wanted));
  disk.convert_seconds = placement.convert_seconds;
  return disk;
}

absl::StatusOr<bool> LayerPlacer::PlaceInArena(PlaceCall& call, Wanted& wanted, Placement& placement) {
  for (;;) {
    Taken taken;
    Chores chores;
    const absl::StatusOr<Step> step = Take(call, wanted, taken, chores);
    parts_.Finish(chores);
    RETURN_IF_ERROR(step.status());
    if (*step == Step::kNone) return false;
    if (*step == Step::kAgain) continue;
    if (*step == Step::kCheck) {
      RETURN_IF_ERROR(Check(call, wanted, taken));
      continue;
    }
    if (*step != Step::kUse) RETURN_IF_ERROR(Fill(call, wanted, *step, taken));
    taken.placement.layer_id = wanted.digest;
    taken.placement.reused = *step == Step::kUse && !wanted.made_here;
    taken.placement.convert_seconds = placement.convert_seconds;
    placement = std::move(taken.placement);
    return true;
  }
}

absl::StatusOr<LayerPlacer::Step> LayerPlacer::Take(PlaceCall& call, Wanted& wanted, Taken& taken,
                                                    Chores& chores) {
  const std::string filling = FillingKey(wanted.digest, call.domain);
  const std::string what = "layer " + wanted.source.path + ": waiting for its place in an arena";
  MutexLock lock(parts_.mutex);
  for (;;) {
    if (parts_.filling.count(filling) != 0) {
      RETURN_IF_ERROR(parts_.Wait(call.patience, what));
      continue;
    }
    const FoundRegion found = FindRegion(parts_.records, call.domain, wanted.digest, call.devices);
    if (found.region != nullptr) return Use(call, found, taken);
    if (wanted.image == nullptr) return Step::kNone;
    ASSIGN_OR_RETURN(const Room room,
                     FindRoom(parts_.records, parts_.options, {call.domain, wanted.image->image.bytes},
                              call.devices, chores));
    switch (room.kind) {
      case Room::Kind::kNone:
        wanted.why_scsi = room.why_not;
        return Step::kNone;
      case Room::Kind::kAfterChores:
        ++parts_.counters.evictions;
        return Step::kAgain;
      case Room::Kind::kLater:
        RETURN_IF_ERROR(parts_.Wait(call.patience, what));
        continue;
      case Room::Kind::kFound:
      case Room::Kind::kNewArena:
        room.arena->regions[wanted.digest].region = room.region;
        parts_.filling.insert(filling);
        return Reserve(call, {room.arena, &room.arena->regions.at(wanted.digest)}, taken);
    }
  }
}

void LayerPlacer::Fix(const FoundRegion& found, Taken& taken) {
  found.region->last_use = parts_.records.use_clock++;
  taken.handle = found.region->region.handle;
  taken.placement.arena_id = found.arena->id;
  taken.placement.arena_path = found.arena->path;
  taken.placement.offset = found.region->region.offset;
  taken.placement.held_bytes = found.region->region.held_bytes;
  taken.placement.payload_bytes = found.region->region.payload_bytes;
}

LayerPlacer::Step LayerPlacer::Use(const PlaceCall& call, const FoundRegion& found, Taken& taken) {
  Fix(found, taken);
  if (!found.region->verified) {
    ++found.region->pins;
    return Step::kCheck;
  }
  taken.placement.new_user = AddUser(parts_.records, found.region->users, call.sandbox_id);
  if (taken.placement.new_user) ++parts_.counters.reuses;
  return Step::kUse;
}

LayerPlacer::Step LayerPlacer::Reserve(const PlaceCall& call, const FoundRegion& room, Taken& taken) {
  Fix(room, taken);
  taken.placement.new_user = true;
  room.region->users.insert(call.sandbox_id);
  return room.arena->created ? Step::kFill : Step::kCreateAndFill;
}

absl::Status LayerPlacer::Fill(const PlaceCall& call, const Wanted& wanted, Step step, Taken& taken) {
  const Placement& at = taken.placement;
  const auto start = std::chrono::steady_clock::now();
  absl::Status status;
  if (step == Step::kCreateAndFill) {
    status = parts_.arenas.Create(at.arena_path, parts_.options.arena_bytes);
    if (status.ok()) {
      MutexLock lock(parts_.mutex);
      parts_.records.arenas.at(at.arena_id).created = true;
      parts_.changed.NotifyAll();
    }
  }
  const bool created = status.ok();
  if (created) {
    status = parts_.arenas.CopyIn({wanted.image->file.get(), wanted.image->image.path},
                                  {at.arena_path, at.offset, at.payload_bytes}, wanted.digest, call.patience);
  }
  taken.placement.copy_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  Chores chores;
  {
    MutexLock lock(parts_.mutex);
    ArenaRecord& arena = parts_.records.arenas.at(at.arena_id);
    if (status.ok()) {
      RegionRecord& region = arena.regions.at(wanted.digest);
      region.ready = region.verified = true;
      ++parts_.records.version;
      ++parts_.counters.placed_vpmem;
    } else if (created) {
      DropRegion(parts_.records, arena, wanted.digest, chores);
      DropEmptyArenas(parts_.records, chores);
    } else {
      parts_.records.arenas.erase(at.arena_id);  // there is no file, and nobody else has a region in it
    }
    parts_.filling.erase(FillingKey(wanted.digest, call.domain));
    parts_.changed.NotifyAll();
  }
  parts_.Finish(chores);
  return status;
}

absl::Status LayerPlacer::Check(const PlaceCall& call, const Wanted& wanted, const Taken& taken) {
  const Placement& at = taken.placement;
  const absl::StatusOr<std::string> found =
      DigestOf(at.arena_path, at.offset, at.payload_bytes, call.patience);
  const absl::Status end = call.patience.Check("layer " + wanted.source.path + ": being checked");
  const bool whole = found.ok() && *found == wanted.digest;
  bool damaged = false;
  Chores chores;
  {
    MutexLock lock(parts_.mutex);
    ArenaRecord& arena = parts_.records.arenas.at(at.arena_id);
    const auto it = arena.regions.find(wanted.digest);
    // Another may have seen the damage meanwhile.
    const bool named = it != arena.regions.end() && it->second.region.handle == taken.handle;
    damaged = named && !whole && (end.ok() || found.ok());
    if (damaged) {
      ++parts_.counters.rebuilt;
      MarkDamaged(parts_.records, arena, wanted.digest, chores);
    } else {
      if (named && whole) it->second.verified = true;
      Unpin(parts_.records, at.arena_id, taken.handle, chores);
    }
    DropEmptyArenas(parts_.records, chores);
  }
  parts_.Finish(chores);
  if (damaged) {
    LogWarning("layer {} at {} of {} is damaged: it is rebuilt from {}", wanted.digest, at.offset,
               at.arena_path, wanted.source.path);
  }
  return end;
}

absl::StatusOr<Placement> LayerPlacer::PlaceAsDisk(const PlaceCall& call, const Wanted& wanted) {
  const std::string& dir = parts_.options.dir;
  const bool ours = IsOurs(dir, wanted.image->image.path);
  DiskFiles files;
  files.key = DiskKey(dir, wanted.digest, wanted.image->image.path);
  files.path = ours ? DiskPath(dir, wanted.digest) : wanted.image->image.path;
  {
    MutexLock lock(parts_.mutex);
    while (parts_.records.busy_disks.count(wanted.digest) != 0) {
      RETURN_IF_ERROR(parts_.Wait(call.patience,
                                  "layer " + wanted.source.path + ": waiting for others who place its disk"));
    }
    parts_.records.busy_disks.insert(wanted.digest);
    const auto it = parts_.records.disks.find(files.key);
    files.known = it != parts_.records.disks.end();
    files.verified = files.known && it->second.verified;
    if (files.known) files.tree = it->second.tree;
  }
  const absl::Status status = PutFiles(call, wanted, files);
  Placement placement;
  MutexLock lock(parts_.mutex);
  parts_.records.busy_disks.erase(wanted.digest);
  parts_.changed.NotifyAll();
  RETURN_IF_ERROR(status);
  DiskRecord& disk = parts_.records.disks[files.key];
  if (!files.known) {
    disk.digest = wanted.digest;
    disk.path = files.path;
    disk.bytes = wanted.image->image.bytes;
    disk.why = wanted.why_scsi;
    ++parts_.counters.placed_scsi;
    ++parts_.records.version;
  }
  disk.verified = true;
  disk.tree = files.tree;
  disk.last_use = parts_.records.use_clock++;
  placement.layer_id = wanted.digest;
  placement.kind = PlacementKind::kScsi;
  placement.payload_bytes = disk.bytes;
  placement.image_path = disk.path;
  placement.tree = disk.tree;
  if (!disk.tree.root_hash.empty()) placement.tree_path = TreePath(dir, wanted.digest);
  placement.why_scsi = wanted.why_scsi;
  placement.reused = !wanted.made_here;
  placement.new_user = AddUser(parts_.records, disk.users, call.sandbox_id);
  if (placement.new_user && files.known) ++parts_.counters.reuses;
  return placement;
}

absl::Status LayerPlacer::PutFiles(const PlaceCall& call, const Wanted& wanted, DiskFiles& files) {
  LayerImage& image = *wanted.image;
  const bool missing = !files.known || !files.verified;
  const bool install = missing && !image.temporary.empty();
  if (!install && !files.known && files.path != image.image.path) {
    return MakeStatus(absl::StatusCode::kUnavailable,
                      "layer {}: its disk was dropped while it was placed; try again", wanted.source.path);
  }
  std::string tree_temporary;
  if (parts_.options.scsi_verity && files.tree.root_hash.empty()) {
    ASSIGN_OR_RETURN(const DiskRoom::Share room, parts_.RoomFor(VerityTreeBytes(image.image.bytes)));
    tree_temporary = parts_.TemporaryPath();
    ASSIGN_OR_RETURN(
        files.tree, MakeVerityTree({install ? image.temporary : files.path, wanted.digest, image.image.bytes},
                                   tree_temporary, call.patience));
  }
  const std::string temporary = image.temporary;
  absl::Status status;
  if (install) {
    status = parts_.fs.Rename(temporary, files.path);  // also over one that was found damaged
    if (status.ok()) image.temporary.clear();
  }
  // Equal images have equal trees: whoever has the other one open reads the same.
  if (status.ok() && !tree_temporary.empty())
    status = parts_.fs.Rename(tree_temporary, TreePath(parts_.options.dir, wanted.digest));
  if (status.ok()) return status;
  if (!tree_temporary.empty()) parts_.fs.Remove(tree_temporary).IgnoreError();
  if (install && image.temporary.empty() && !files.known) {
    if (parts_.fs.Rename(files.path, temporary).ok()) {
      image.temporary = temporary;
    } else {
      parts_.fs.Remove(files.path).IgnoreError();
    }
  }
  return status;
}

}  // namespace lamina::layers
