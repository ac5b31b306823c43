// What the parts of the store share. Lock order: the index's own mutex, this one, the conversions' own.
#pragma once

#include <functional>
#include <set>
#include <stop_token>
#include <string>

#include "base/file_system.h"
#include "base/mutex.h"
#include "layers/arena_file.h"
#include "layers/chores.h"
#include "layers/conversions.h"
#include "layers/disk_room.h"
#include "layers/layer_index.h"
#include "layers/layer_records.h"
#include "layers/layer_types.h"

namespace lamina::layers {

struct StoreParts {
  StoreParts(FileSystem& fs, ArenaFiles& arenas, StoreOptions options, ImageMaker maker);

  FileSystem& fs;
  ArenaFiles& arenas;
  const StoreOptions options;
  const ImageMaker maker;
  IndexFile index;

  // Guards what is in memory. No file is read, written, made, removed or synced under it.
  mutable Mutex mutex;
  CondVar changed;  // records, filling
  LayerRecords records GUARDED_BY(mutex);
  std::set<std::string> filling GUARDED_BY(mutex);  // FillingKeys of what is being copied into an arena
  StoreCounters counters GUARDED_BY(mutex);
  uint64_t next_temporary GUARDED_BY(mutex) = 1;

  DiskRoom disk;

  Conversions conversions;  // last: its threads use all of the above

  // One wait for a change. The caller's end instead: see Patience::Check.
  absl::Status Wait(const Patience& patience, const std::string& what) REQUIRES(mutex);
  // Does the chores and settles them. `chores` is empty afterwards.
  void Finish(Chores& chores) EXCLUDES(mutex);
  // What the records held when it was called is durable when it returns OK.
  absl::Status Save() EXCLUDES(mutex);
  // Drops what is idle beyond `keep_bytes`; bytes dropped.
  uint64_t DropIdleLocked(uint64_t keep_bytes, Chores& chores) REQUIRES(mutex);
  // Room on the disk, of a file that takes `bytes`; of one of which nobody knows yet, at most `most`
  // (DiskRoom::TakeHalf). What is idle goes before anybody is refused. ResourceExhausted: there is none.
  absl::StatusOr<DiskRoom::Share> RoomFor(uint64_t bytes) EXCLUDES(mutex);
  absl::StatusOr<DiskRoom::Share> RoomToConvert(uint64_t most) EXCLUDES(mutex);
  std::string TemporaryPath() EXCLUDES(mutex);

 private:
  // False: there was nothing.
  bool DropAllIdle() EXCLUDES(mutex);
};

// One copy at a time of a layer into a domain's arenas.
inline std::string FillingKey(const std::string& digest, const std::string& domain) {
  return digest + "|" + domain;
}

}  // namespace lamina::layers
