// The store's book: who uses what, what is idle, what goes. Pure functions on the records: no I/O, no locks;
// what is to be done to files comes out as chores. They raise `version` where the index must hold the change.
#pragma once

#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "layers/chores.h"
#include "layers/layer_index.h"
#include "layers/layer_records.h"
#include "layers/layer_types.h"

namespace lamina::layers {

// Of what the index held when the last process ended. Arenas count as created. FailedPrecondition when
// regions overlap: a region that a VM may have mapped must not be given away, better no daemon than that.
absl::StatusOr<LayerRecords> RestoreRecords(const IndexContent& content, const StoreOptions& options);

// True when the sandbox had not been a user.
bool AddUser(LayerRecords& records, std::set<std::string>& users, const std::string& sandbox_id);
// True when it used anything. Damaged regions and snapshotters' blobs that nobody uses any more go at once.
bool ReleaseUser(LayerRecords& records, const StoreOptions& options, const std::string& sandbox_id,
                 Chores& chores);
// Takes back one placement that the sandbox was never told of, if it was a new user of it.
void UndoPlacement(LayerRecords& records, const StoreOptions& options, const std::string& sandbox_id,
                   const Placement& placement, Chores& chores);
std::set<std::string> AllUsers(const LayerRecords& records);

// A region loses its name at once, its room when the chore is settled.
void DropRegion(LayerRecords& records, ArenaRecord& arena, const std::string& digest, Chores& chores);
void DropDisk(LayerRecords& records, const StoreOptions& options, const std::string& key, Chores& chores);
void DropEmptyArenas(LayerRecords& records, Chores& chores);
// The pin that a check or a copy had on the region; the last one of an idle damaged region drops it. The
// region's name may have changed meanwhile.
void Unpin(LayerRecords& records, const std::string& arena_id, const Handle& handle, Chores& chores);
// Found damaged, by one who has a pin on it and gives it up: dropped if idle, else it keeps its place without
// its name while VMs have it.
void MarkDamaged(LayerRecords& records, ArenaRecord& arena, const std::string& digest, Chores& chores);

// The arena's least recently used idle region. False: there is none.
bool EvictOne(LayerRecords& records, ArenaRecord& arena, Chores& chores);
struct Dropped {
  uint64_t bytes = 0;
  size_t layers = 0;
};
// Idle layers, least recently used first, until at most `keep_bytes` of them are held.
Dropped DropIdle(LayerRecords& records, const StoreOptions& options, uint64_t keep_bytes, Chores& chores);
// Digests of sources of which no layer is held.
void ForgetSources(LayerRecords& records);

// The chores are done: what was punched is free, what was removed may be made again.
void Settle(LayerRecords& records, const Chores& chores);

}  // namespace lamina::layers
