// What goes where: which region serves a VM, which arena has room, how much of an arena the VM attaches. Pure
// functions on the records: no I/O, no locks.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "layers/chores.h"
#include "layers/layer_records.h"
#include "layers/layer_types.h"

namespace lamina::layers {

// Windows grow in such steps: 1 MiB of the guest's memory each, for page structs.
inline constexpr uint64_t kWindowStep = 64ULL << 20;

// A VM's windows and slots during a call that places layers for it.
struct Devices {
  std::map<std::string, uint64_t> windows;  // by arena
  size_t free = 0;
};

struct FoundRegion {
  ArenaRecord* arena = nullptr;
  RegionRecord* region = nullptr;  // null: none
};
// The layer in an arena of the domain that the VM sees, or can take one more window to see, which it then
// takes.
FoundRegion FindRegion(LayerRecords& records, const std::string& domain, const std::string& digest,
                       Devices& devices);

struct Room {
  enum class Kind {
    kFound,
    kNewArena,     // found in an arena whose file is yet to be created
    kAfterChores,  // something idle was evicted: do the chores and look again
    kLater,        // another call is creating an arena of the domain, or punching: look again after it
    kNone,         // `why_not`
  };
  Kind kind = Kind::kNone;
  ArenaRecord* arena = nullptr;
  Region region;
  std::string why_not;
};
struct RoomRequest {
  std::string domain;
  uint64_t bytes = 0;
};
// What the VM has, then what the domain has; without eviction, then with it; a new arena comes before
// evicting from one not attached. The region is the caller's: it belongs to no record yet.
absl::StatusOr<Room> FindRoom(LayerRecords& records, const StoreOptions& options, const RoomRequest& request,
                              Devices& devices, Chores& chores);

// Sets the window of each placement in an arena. `attached`: what the VM had before the call.
void SetWindows(const LayerRecords& records, const std::map<std::string, uint64_t>& attached,
                std::vector<Placement>& placements);

// For people and for a pod's first arenas; regions by their offset. An arena whose file is being created is
// not shown.
std::vector<ArenaInfo> DescribeArenas(const LayerRecords& records);
std::vector<DiskInfo> DescribeDisks(const LayerRecords& records);

}  // namespace lamina::layers
