// All layers of one container at once.
#include <algorithm>
#include <thread>

#include "base/status.h"
#include "layers/layer_records.h"

namespace lamina::layers {

// The VM cannot have a region cached that it was never told of: it is not held for the VM's life.
void LayerStore::UndoUseLocked(const std::string& sandbox_id, const Placement& placement) {
  if (!placement.new_user) return;
  if (placement.kind == PlacementKind::kVpmem) {
    const auto arena = arenas_.find(placement.arena_id);
    if (arena == arenas_.end()) return;
    const auto it = arena->second->regions.find(placement.layer_id);
    if (it != arena->second->regions.end() && it->second.region.offset == placement.offset)
      it->second.users.erase(sandbox_id);
    return;
  }
  for (auto it = disks_.begin(); it != disks_.end();) {
    const auto current = it++;
    Disk& disk = *current->second;
    if (disk.path != placement.image_path) continue;
    disk.users.erase(sandbox_id);
    if (!Ours(disk.path) && disk.idle()) disks_.erase(current);
  }
}

absl::StatusOr<std::vector<Placement>> LayerStore::PlaceAll(const PlaceRequest& request,
                                                            const std::vector<std::string>& sources) {
  {
    MutexLock lock(mutex_);
    while (!placing_.insert(request.sandbox_id).second) flight_ended_.Wait(mutex_);
  }
  // An image may name a layer twice; it is placed once.
  std::vector<std::string> wanted = sources;
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());

  Devices devices{request.attached_arenas, request.free_arena_slots, true};
  std::map<std::string, absl::StatusOr<Placement>> placed;
  for (const std::string& source : wanted) placed.emplace(source, absl::CancelledError("not begun"));
  Mutex turn;
  size_t next = 0;
  bool failed = false;
  const auto work = [&] {
    for (;;) {
      PlaceRequest one = request;
      {
        MutexLock lock(turn);
        if (failed || next == wanted.size()) return;
        one.source = wanted[next++];
      }
      absl::StatusOr<Placement> result = PlaceOne(one, devices);
      MutexLock lock(turn);
      failed = failed || !result.ok();
      placed.at(one.source) = std::move(result);
    }
  };
  // Converting is what takes long, and is bounded for the node by max_conversions.
  const size_t most = std::max<size_t>(
      {2, options_.max_conversions, static_cast<size_t>(std::thread::hardware_concurrency())});
  std::vector<std::thread> threads;
  for (size_t i = 1; i < std::min(wanted.size(), most); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();

  MutexLock lock(mutex_);
  placing_.erase(request.sandbox_id);
  flight_ended_.NotifyAll();
  std::vector<Placement> all;
  absl::Status status;
  for (const std::string& source : sources) {
    const absl::StatusOr<Placement>& one = placed.at(source);
    if (one.ok()) {
      all.push_back(*one);
    } else if (status.ok() || absl::IsCancelled(status)) {
      status = Annotate(one.status(), "layer " + source);
    }
  }
  if (status.ok() && unsaved_) status = SaveLocked();
  if (status.ok()) {
    SetWindowsLocked(request, all);
    return all;
  }
  for (const Placement& placement : all) UndoUseLocked(request.sandbox_id, placement);
  GcLocked(options_.idle_budget_bytes);
  // The error that matters is the layer's; what could not be saved is with the next change.
  SaveLocked().IgnoreError();
  return status;
}

}  // namespace lamina::layers
