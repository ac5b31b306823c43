// The store's records; private to layers/.
#pragma once

#include <set>
#include <string>

#include "layers/layer_store.h"

namespace lamina::layers {

struct LayerStore::Entry {
  Region region;
  std::set<std::string> users;  // sandboxes that were given it and may have it cached
  uint64_t last_use = 0;
  bool ready = false;     // copied and checked; a region that is not is invisible to others
  bool verified = false;  // checked since this process started
  size_t pins = 0;        // copies being made from it
  bool idle() const { return ready && users.empty() && pins == 0; }
};

struct LayerStore::Arena {
  std::string id, domain, path, policy;
  uint64_t bytes = 0;
  std::unique_ptr<PoolAllocator> pool;
  std::map<std::string, Entry> regions;  // by digest
};

struct LayerStore::Disk {
  std::string digest, path, why;
  uint64_t bytes = 0;
  std::set<std::string> users;
  uint64_t last_use = 0;
  bool verified = false;
  VerityTree tree;  // made by this process; without a root: none
  size_t pins = 0;
  bool idle() const { return users.empty() && pins == 0; }
};

// Windows grow in such steps: 1 MiB of the guest's memory each, for page structs.
inline constexpr uint64_t kWindowStep = 64ULL << 20;

// Where the bytes of a region that a VM must see end.
inline uint64_t EndOf(const Region& region) {
  return region.offset + (region.payload_bytes + 4095) / 4096 * 4096;
}

// The name of a region that was found damaged while a VM had it: no layer any more, but not free either.
inline constexpr char kDamaged[] = "damaged-";
inline bool IsDamaged(const std::string& name) { return name.rfind(kDamaged, 0) == 0; }

}  // namespace lamina::layers
