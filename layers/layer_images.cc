#include "layers/layer_images.h"

#include <chrono>

#include "base/log.h"
#include "base/status.h"
#include "layers/layer_book.h"

namespace lamina::layers {
namespace {

bool IsCallersEnd(const absl::Status& status) {
  return absl::IsCancelled(status) || absl::IsDeadlineExceeded(status);
}

}  // namespace

absl::StatusOr<LayerImagePtr> LayerImages::Obtain(const LayerSource& source, Conversions::Ticket& ticket,
                                                  const Patience& patience) {
  std::string digest;
  {
    MutexLock lock(parts_.mutex);
    if (const auto it = parts_.records.digests.find(source.key); it != parts_.records.digests.end())
      digest = it->second;
  }
  absl::StatusOr<PinnedDisk> disk = PinDisk(source, digest);
  if (disk.ok() && disk->verified) return std::move(disk->image);
  return ticket.Get(patience, "layer " + source.path + ": being converted",
                    [images = *this, source, digest](const std::stop_token& stop) mutable {
                      return images.Make(source, digest, stop);
                    });
}

absl::StatusOr<LayerImages::PinnedDisk> LayerImages::PinDisk(const LayerSource& source,
                                                             const std::string& digest) {
  PinnedDisk pinned;
  if (digest.empty()) return pinned;
  const std::string& dir = parts_.options.dir;
  const std::string key = source.is_directory ? digest : DiskKey(dir, digest, source.path);
  auto image = std::make_shared<LayerImage>(parts_.fs);
  {
    MutexLock lock(parts_.mutex);
    const auto it = parts_.records.disks.find(key);
    if (it == parts_.records.disks.end()) return pinned;
    ++it->second.pins;
    image->image = {it->second.path, digest, it->second.bytes};
    pinned.verified = it->second.verified;
  }
  image->release = [&parts = parts_, key] {
    MutexLock lock(parts.mutex);
    --parts.records.disks.at(key).pins;
  };
  ASSIGN_OR_RETURN(image->file, OpenToRead(image->image.path));
  pinned.image = std::move(image);
  return pinned;
}

void LayerImages::Learn(const LayerSource& source, const std::string& digest) {
  MutexLock lock(parts_.mutex);
  std::string& known = parts_.records.digests[source.key];
  if (known == digest) return;
  known = digest;
  ++parts_.records.version;
}

absl::StatusOr<LayerImagePtr> LayerImages::Make(const LayerSource& source, const std::string& digest,
                                                const std::stop_token& stop) {
  ASSIGN_OR_RETURN(LayerImagePtr disk, FromDisk(source, digest, stop));
  if (disk != nullptr) return disk;
  absl::StatusOr<LayerImagePtr> made =
      source.is_directory ? Convert(source, digest, stop) : FromBlob(source, digest, stop);
  ASSIGN_OR_RETURN(LayerImagePtr image, std::move(made));
  ASSIGN_OR_RETURN(image->file, OpenToRead(image->image.path));
  Learn(source, image->image.digest);
  return image;
}

absl::StatusOr<LayerImagePtr> LayerImages::FromDisk(const LayerSource& source, const std::string& digest,
                                                    const std::stop_token& stop) {
  absl::StatusOr<PinnedDisk> pinned = PinDisk(source, digest);
  if (!pinned.ok() && !absl::IsNotFound(pinned.status())) return pinned.status();
  if (pinned.ok() && (pinned->image == nullptr || pinned->verified)) return std::move(pinned->image);
  bool whole = false;
  if (pinned.ok()) {
    const absl::StatusOr<Image> found = ExamineErofsImage(pinned->image->image.path, {.stop = stop});
    if (IsCallersEnd(found.status())) return found.status();
    whole = found.ok() && found->digest == digest;
  }
  {
    MutexLock lock(parts_.mutex);
    const auto it = parts_.records.disks.find(
        source.is_directory ? digest : DiskKey(parts_.options.dir, digest, source.path));
    if (it != parts_.records.disks.end()) it->second.verified = whole;
    if (!whole) ++parts_.counters.rebuilt;
  }
  if (whole) return std::move(pinned->image);
  LogWarning("layer image of {} is damaged: it is rebuilt", source.path);
  return LayerImagePtr();
}

absl::StatusOr<LayerImagePtr> LayerImages::FromBlob(const LayerSource& source, const std::string& digest,
                                                    const std::stop_token& stop) {
  auto image = std::make_shared<LayerImage>(parts_.fs);
  ASSIGN_OR_RETURN(image->image, ExamineErofsImage(source.path, {.stop = stop}));
  // The key has the file's size and times: what changed without them was not written by anybody.
  if (!digest.empty() && image->image.digest != digest) {
    return MakeStatus(absl::StatusCode::kDataLoss,
                      "layer {}: its sha256 was {} and is {}, though it was not written since: the disk has "
                      "damaged it; remove the image and pull it again",
                      source.path, digest, image->image.digest);
  }
  return image;
}

absl::StatusOr<LayerImagePtr> LayerImages::Convert(const LayerSource& source, const std::string& digest,
                                                   const std::stop_token& stop) {
  auto image = std::make_shared<LayerImage>(parts_.fs);
  image->temporary = parts_.TemporaryPath();
  image->made = true;
  const std::string& to = image->temporary;
  ASSIGN_OR_RETURN(const Conversions::Turn turn,
                   parts_.conversions.Begin({source.key, source.path, to}, stop));
  const auto start = std::chrono::steady_clock::now();
  const uint64_t most = parts_.options.convert.image_bytes;
  absl::StatusOr<DiskRoom::Share> room = parts_.RoomToConvert(most);
  if (!room.ok()) {
    MutexLock lock(parts_.mutex);
    ++parts_.counters.conversion_failures;
    return Annotate(room.status(), "convert layer " + source.path);
  }
  ASSIGN_OR_RETURN(const bool copied, CopyFromArena(digest, to, room->bytes(), image->image, stop));
  absl::Status status;
  if (!copied) {
    const uint64_t half = room->bytes();
    absl::StatusOr<Image> made = parts_.maker(source.path, to, half, stop);
    if (absl::IsResourceExhausted(made.status()) && half < most) {
      // It may fit where nobody else is writing.
      room = absl::ResourceExhaustedError("given back");
      absl::StatusOr<DiskRoom::Share> all = parts_.disk.TakeAll(most);
      if (all.ok() && all->bytes() > half) made = parts_.maker(source.path, to, all->bytes(), stop);
    }
    status = made.status();
    if (made.ok()) image->image = *std::move(made);
    // A snapshot that went meanwhile may have been read in part.
    const absl::StatusOr<LayerSource> after = DescribeSource(source.path);
    if (status.ok() && (!after.ok() || after->key != source.key)) {
      status =
          MakeStatus(absl::StatusCode::kNotFound, "layer {} was removed while it was converted", source.path);
    }
  }
  image->convert_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (stop.stop_requested()) {
    LogInfo("layer {}: its conversion was ended after {:.2f} s: nobody waits for it any more", source.path,
            image->convert_seconds);
    return MakeStatus(absl::StatusCode::kCancelled, "layer {}: nobody waits for it any more", source.path);
  }
  {
    MutexLock lock(parts_.mutex);
    if (!status.ok()) ++parts_.counters.conversion_failures;
    if (status.ok() && !copied) ++parts_.counters.conversions;
  }
  RETURN_IF_ERROR(status);
  if (!copied) {
    LogInfo("layer {} converted: {} bytes in {:.2f} s as {}", source.path, image->image.bytes,
            image->convert_seconds, image->image.digest);
  }
  return image;
}

absl::StatusOr<bool> LayerImages::CopyFromArena(const std::string& digest, const std::string& to,
                                                uint64_t most_bytes, Image& image,
                                                const std::stop_token& stop) {
  std::string arena_id;
  ArenaRange from;
  Handle handle;
  if (digest.empty()) return false;
  {
    MutexLock lock(parts_.mutex);
    for (auto& [id, arena] : parts_.records.arenas) {
      const auto it = arena.regions.find(digest);
      if (it == arena.regions.end() || !it->second.ready) continue;
      if (it->second.region.payload_bytes > most_bytes) continue;
      arena_id = id;
      from = {arena.path, it->second.region.offset, it->second.region.payload_bytes};
      handle = it->second.region.handle;
      ++it->second.pins;
      break;
    }
  }
  if (arena_id.empty()) return false;
  absl::Status status = parts_.arenas.CopyOut(from, to, {.stop = stop});
  if (status.ok()) {
    absl::StatusOr<Image> found = ExamineErofsImage(to, {.stop = stop});
    status = found.status();
    if (found.ok() && found->digest != digest) status = absl::DataLossError("damaged");
    if (status.ok()) {
      image = *std::move(found);
    } else {
      parts_.fs.Remove(to).IgnoreError();
    }
  }
  Chores chores;
  {
    MutexLock lock(parts_.mutex);
    Unpin(parts_.records, arena_id, handle, chores);
  }
  parts_.Finish(chores);
  if (IsCallersEnd(status)) return status;
  return status.ok();
}

}  // namespace lamina::layers
