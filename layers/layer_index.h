// The store's index on disk: <dir>/index.json, replaced atomically; docs/layers.md has its content.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/file_system.h"
#include "base/mutex.h"
#include "layers/layer_records.h"

namespace lamina::layers {

struct IndexedRegion {
  std::string digest;
  Region region;
  uint64_t last_use = 0;
  std::set<std::string> users;
};
struct IndexedArena {
  std::string id, domain;
  Policy policy = Policy::kDense;
  uint64_t bytes = 0;
  std::vector<IndexedRegion> regions;
};
struct IndexedDisk {
  std::string digest;
  std::string path;  // empty: the store's own file
  std::string why;
  uint64_t bytes = 0, last_use = 0;
  std::set<std::string> users;
};
struct IndexContent {
  uint64_t next_arena = 1;
  std::map<std::string, std::string> sources;  // key -> digest
  std::vector<IndexedArena> arenas;
  std::vector<IndexedDisk> disks;
};

// What of the records outlives the process: arenas with a file and the regions that are ready.
IndexContent IndexOf(const LayerRecords& records);

// One frame (base/framing.h) of the kind "index", its payload JSON.
std::string EncodeIndex(const IndexContent& content);
// Entries that cannot be one (an id with a slash, a digest that is none) are left out. Version 2, which was
// JSON alone, is read too. FailedPrecondition: it is of a newer version; DataLoss: it is no index, or
// damaged.
absl::StatusOr<IndexContent> DecodeIndex(std::string_view text, const std::string& dir);

// The file. Thread-safe: writers take turns, and who waited finds its change written by another.
class IndexFile {
 public:
  IndexFile(FileSystem& fs, std::string dir) : fs_(fs), dir_(std::move(dir)) {}

  // Nothing where there is no file yet. Errors as DecodeIndex's.
  absl::StatusOr<IndexContent> Read();

  struct Numbered {
    uint64_t version = 0;
    IndexContent content;
  };
  // `version` of the records, or a later one, is durable when it returns OK. `newest` is asked by the one
  // that writes.
  absl::Status Write(uint64_t version, const std::function<Numbered()>& newest);

 private:
  std::string Path() const { return dir_ + "/index.json"; }

  FileSystem& fs_;
  const std::string dir_;
  Mutex mutex_;  // before the store's
  uint64_t written_ GUARDED_BY(mutex_) = 0;
};

}  // namespace lamina::layers
