// What the layer store is asked, and what it answers.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "layers/disk_room.h"
#include "layers/erofs_image.h"
#include "layers/patience.h"
#include "layers/pool_allocator.h"
#include "layers/verity.h"

namespace lamina::layers {

struct StoreOptions {
  std::string dir;
  Policy policy = Policy::kDense;
  uint64_t arena_bytes = 1ULL << 30;
  uint64_t max_layer_bytes = 512ULL << 20;
  bool vpmem = true;
  bool scsi_verity = false;  // disks come with a hash tree (layers/verity.h)
  uint64_t idle_budget_bytes = 4ULL << 30;
  size_t max_arenas_per_domain = 0;  // 0: as many as the pods' device slots ask for
  size_t max_conversions = 0;        // at a time (layers/fair_turns.h); 0: one for each core, at least two
  ConvertLimits convert;             // of each, whoever waits for it
  DiskLimits disk;                   // of all together
  DiskRoom::Measure measure_disk;    // replaces MeasureDisk(dir) in tests
};

enum class PlacementKind { kVpmem, kScsi };

struct Placement {
  std::string layer_id;  // sha256 of the image, 64 hex digits
  PlacementKind kind = PlacementKind::kVpmem;
  std::string arena_id, arena_path;
  // The window: how much of the arena, from its start, the VM attaches (or has attached) to see the region.
  uint64_t arena_bytes = 0;
  uint64_t offset = 0, held_bytes = 0, payload_bytes = 0;
  std::string image_path;  // kScsi
  std::string tree_path;   // kScsi, with scsi_verity: the file of the disk's hash tree
  VerityTree tree;
  std::string why_scsi;
  bool reused = false;    // no conversion, no new bytes
  bool new_user = false;  // the sandbox had not been given it before
  double convert_seconds = 0, copy_seconds = 0;
};

struct PlaceRequest {
  std::string sandbox_id, domain;
  std::string source;                               // layer directory, or an EROFS image file
  std::map<std::string, uint64_t> attached_arenas;  // what the VM has: its window of each arena
  size_t free_arena_slots = 0;                      // how many more windows it can take
  // How long the caller waits: for conversions, copies, checks and for others'. A conversion is given up when
  // the last one who waits for it gives up.
  Patience patience;
};

// Makes an EROFS image of a directory, as ErofsMaker::Make.
using ImageMaker =
    std::function<absl::StatusOr<Image>(const std::string& directory, const std::string& image_path,
                                        uint64_t most_bytes, const std::stop_token& stop)>;

struct RegionInfo {
  std::string layer_id;
  uint64_t offset = 0, held_bytes = 0, payload_bytes = 0;
  std::set<std::string> users;
};
struct ArenaInfo {
  std::string id, domain, path;
  uint64_t bytes = 0, held_bytes = 0, payload_bytes = 0;
  uint64_t window_bytes = 0;  // what a VM attaches to see all that is in it
  std::vector<RegionInfo> regions;
};
struct DiskInfo {
  std::string layer_id, path, why;  // why it is not in an arena
  std::string root_hash;            // of its hash tree, if this process has made one
  uint64_t bytes = 0;
  std::set<std::string> users;
};
struct ConversionInfo {
  std::string source;
  double seconds = 0;  // so far
  uint64_t bytes = 0;  // of the image, so far
};
struct PackResult {
  size_t moved_layers = 0, removed_arenas = 0;
  uint64_t moved_bytes = 0;
};
struct StoreCounters {
  uint64_t placed_vpmem = 0, placed_scsi = 0, conversions = 0, conversion_failures = 0, reuses = 0,
           evictions = 0, rebuilt = 0;
  size_t converting = 0;
};

}  // namespace lamina::layers
