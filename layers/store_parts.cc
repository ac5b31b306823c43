#include "layers/store_parts.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "layers/layer_book.h"

namespace lamina::layers {
namespace {

constexpr uint64_t kSmallestImage = 4096;

}  // namespace

StoreParts::StoreParts(FileSystem& fs, ArenaFiles& arenas, StoreOptions options, ImageMaker maker)
    : fs(fs),
      arenas(arenas),
      options(std::move(options)),
      maker(std::move(maker)),
      index(fs, this->options.dir),
      disk(
          this->options.dir, this->options.disk,
          this->options.measure_disk ? this->options.measure_disk
                                     : [dir = this->options.dir] { return MeasureDisk(dir); }),
      conversions(this->options.max_conversions) {}

absl::Status StoreParts::Wait(const Patience& patience, const std::string& what) {
  RETURN_IF_ERROR(patience.Check(what));
  if (patience.deadline == std::chrono::steady_clock::time_point::max()) {
    changed.Wait(mutex);
  } else {
    changed.WaitUntil(mutex, patience.deadline);
  }
  return absl::OkStatus();
}

void StoreParts::Finish(Chores& chores) {
  if (chores.empty()) return;
  Do(chores, fs, arenas);
  {
    MutexLock lock(mutex);
    Settle(records, chores);
    changed.NotifyAll();
  }
  chores = Chores();
}

absl::Status StoreParts::Save() {
  uint64_t version = 0;
  {
    MutexLock lock(mutex);
    version = records.version;
  }
  return index.Write(version, [this] {
    MutexLock lock(mutex);
    return IndexFile::Numbered{records.version, IndexOf(records)};
  });
}

uint64_t StoreParts::DropIdleLocked(uint64_t keep_bytes, Chores& chores) {
  const Dropped dropped = DropIdle(records, options, keep_bytes, chores);
  counters.evictions += dropped.layers;
  if (conversions.idle()) ForgetSources(records);  // else what is known now may be placed in a moment
  return dropped.bytes;
}

absl::StatusOr<DiskRoom::Share> StoreParts::RoomFor(uint64_t bytes) {
  absl::StatusOr<DiskRoom::Share> room = disk.Take(bytes);
  if (!absl::IsResourceExhausted(room.status()) || !DropAllIdle()) return room;
  return disk.Take(bytes);
}

absl::StatusOr<DiskRoom::Share> StoreParts::RoomToConvert(uint64_t most) {
  // With less than the largest image that goes into an arena, what is idle goes first.
  absl::StatusOr<DiskRoom::Share> room = disk.TakeHalf(most, std::min(most, options.max_layer_bytes));
  if (!absl::IsResourceExhausted(room.status())) return room;
  DropAllIdle();
  return disk.TakeHalf(most, kSmallestImage);
}

bool StoreParts::DropAllIdle() {
  Chores chores;
  uint64_t dropped = 0;
  {
    MutexLock lock(mutex);
    dropped = DropIdleLocked(0, chores);
  }
  Finish(chores);
  return dropped != 0;
}

std::string StoreParts::TemporaryPath() {
  MutexLock lock(mutex);
  return fmt::format("{}/{}.part", options.dir, next_temporary++);
}

}  // namespace lamina::layers
