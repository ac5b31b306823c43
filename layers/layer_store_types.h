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
};

struct LayerStore::Arena {
  std::string id, domain, path, policy;
  uint64_t bytes = 0;
  std::unique_ptr<PoolAllocator> pool;
  std::map<std::string, Entry> regions;  // by digest
};

struct LayerStore::Disk {
  std::string path;
  uint64_t bytes = 0;
  std::set<std::string> users;
  uint64_t last_use = 0;
};

}  // namespace lamina::layers
