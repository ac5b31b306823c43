// What the store knows of layers, as plain records: layer_book.h has the rules of who uses what, placement.h
// those of what goes where, layer_index.h what of it is on disk.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "layers/pool_allocator.h"
#include "layers/verity.h"

namespace lamina::layers {

struct RegionRecord {
  Region region;
  std::set<std::string> users;  // sandboxes that were given it and may have it cached
  uint64_t last_use = 0;
  bool ready = false;     // copied and checked; a region that is not is invisible to others
  bool verified = false;  // checked since this process started
  size_t pins = 0;        // copies being made from it, checks of it
  bool idle() const { return ready && users.empty() && pins == 0; }
};

struct ArenaRecord {
  std::string id, domain, path;
  Policy policy = Policy::kDense;
  uint64_t bytes = 0;
  std::unique_ptr<PoolAllocator> pool;
  std::map<std::string, RegionRecord> regions;  // by digest
  bool created = false;                         // its file is there
  size_t punching = 0;  // regions that have no name any more, and are given again once they are holes
};

struct DiskRecord {
  std::string digest, path, why;  // why it is not in an arena
  uint64_t bytes = 0;
  std::set<std::string> users;
  uint64_t last_use = 0;
  bool verified = false;
  VerityTree tree;  // made by this process; without a root: none
  size_t pins = 0;
  bool idle() const { return users.empty() && pins == 0; }
};

struct LayerRecords {
  std::map<std::string, ArenaRecord> arenas;   // by id
  std::map<std::string, DiskRecord> disks;     // by digest, a foreign blob's by DiskKey
  std::map<std::string, std::string> digests;  // source key -> digest
  std::set<std::string> busy_disks;            // digests whose files are being put in place or removed
  uint64_t next_arena = 1;
  uint64_t use_clock = 1;
  uint64_t version = 1;  // raised with each change that the index must hold
};

// Where the bytes of a region that a VM must see end.
inline uint64_t EndOf(const Region& region) {
  return region.offset + (region.payload_bytes + 4095) / 4096 * 4096;
}

// The name of a region that was found damaged while a VM had it: no layer any more, but not free either.
inline constexpr char kDamaged[] = "damaged-";
inline bool IsDamaged(const std::string& name) { return name.rfind(kDamaged, 0) == 0; }

// The store's files, in its directory.
inline std::string ArenaPath(const std::string& dir, const std::string& id) {
  return dir + "/" + id + ".arena";
}
inline std::string DiskPath(const std::string& dir, const std::string& digest) {
  return dir + "/" + digest + ".erofs";
}
inline std::string TreePath(const std::string& dir, const std::string& digest) {
  return dir + "/" + digest + ".verity";
}
inline bool IsOurs(const std::string& dir, const std::string& path) { return path.rfind(dir + "/", 0) == 0; }

// Our image is known by its content; a snapshotter's blob is used where it is, for as long as it is there.
inline std::string DiskKey(const std::string& dir, const std::string& digest, const std::string& path) {
  return IsOurs(dir, path) ? digest : digest + "@" + path;
}

}  // namespace lamina::layers
