#include "layers/layer_store.h"

#include <algorithm>
#include <thread>

#include "base/log.h"
#include "base/status.h"
#include "base/ttrpc/thread.h"
#include "layers/layer_book.h"
#include "layers/layer_pack.h"
#include "layers/placement.h"
#include "layers/store_files.h"

namespace lamina::layers {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

// Runs `work` on as many threads, this one among them; on fewer where the kernel gives none. It returns when
// all have.
void SideBySide(size_t threads, const std::function<void()>& work) {
  Mutex mutex;
  CondVar ended;
  size_t helpers = 0;
  for (size_t i = 1; i < threads; ++i) {
    {
      MutexLock lock(mutex);
      ++helpers;
    }
    const absl::Status started = ttrpc::StartThread(kStackBytes, [&] {
      work();
      MutexLock lock(mutex);
      --helpers;
      ended.NotifyAll();
    });
    if (started.ok()) continue;
    MutexLock lock(mutex);
    --helpers;
    break;
  }
  work();
  MutexLock lock(mutex);
  while (helpers > 0) ended.Wait(mutex);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LayerStore>> LayerStore::Open(FileSystem& fs, StoreOptions options,
                                                             ImageMaker maker, ArenaFiles& arenas) {
  ASSIGN_OR_RETURN(const auto probe, MakeAllocator(options.policy, options.arena_bytes));
  std::shared_ptr<ErofsMaker> mkfs;
  if (!maker) {
    mkfs = std::make_shared<ErofsMaker>(options.convert);
    maker = [mkfs](const std::string& directory, const std::string& image, uint64_t most_bytes,
                   const std::stop_token& stop) { return mkfs->Make(directory, image, most_bytes, stop); };
  }
  std::unique_ptr<LayerStore> store(new LayerStore(fs, arenas, std::move(options), std::move(maker)));
  store->mkfs_ = std::move(mkfs);
  RETURN_IF_ERROR(store->Load());
  return store;
}

absl::Status LayerStore::Load() {
  const StoreOptions& options = parts_.options;
  RETURN_IF_ERROR(parts_.fs.MakeDirectories(options.dir, 0700));
  ASSIGN_OR_RETURN(IndexContent content, parts_.index.Read());
  ForgetMissing(parts_.fs, options, content);
  ASSIGN_OR_RETURN(LayerRecords records, RestoreRecords(content, options));
  RETURN_IF_ERROR(ClearLeftovers(parts_.fs, parts_.arenas, options, records));
  MutexLock lock(parts_.mutex);
  parts_.records = std::move(records);
  return absl::OkStatus();
}

absl::Status LayerStore::confinement() const {
  return mkfs_ == nullptr ? absl::OkStatus() : mkfs_->confinement();
}

absl::StatusOr<Placement> LayerStore::Place(const PlaceRequest& request) {
  ASSIGN_OR_RETURN(std::vector<Placement> one, PlaceAll(request, {request.source}));
  return std::move(one[0]);
}

absl::StatusOr<std::vector<Placement>> LayerStore::PlaceAll(const PlaceRequest& request,
                                                            const std::vector<std::string>& sources) {
  PlaceCall call;
  call.sandbox_id = request.sandbox_id;
  call.domain = request.domain;
  call.patience = {request.patience.deadline, call.stop.get_token()};
  call.devices = {request.attached_arenas, request.free_arena_slots};
  const std::stop_callback caller_gone(request.patience.stop, [&] {
    call.stop.request_stop();
    MutexLock lock(parts_.mutex);
    parts_.changed.NotifyAll();
  });
  RETURN_IF_ERROR(TakeTurn(call));
  const std::map<std::string, absl::StatusOr<Placement>> placed = PlaceEach(call, sources);
  std::vector<Placement> all;
  absl::Status status;
  for (const std::string& source : sources) {
    const auto one = placed.find(source);
    if (one == placed.end()) continue;  // not begun, because another had failed
    if (one->second.ok()) {
      all.push_back(*one->second);
    } else if (status.ok()) {
      status = Annotate(one->second.status(), "layer " + source);
    }
  }
  if (status.ok()) status = parts_.Save();
  Chores chores;
  {
    MutexLock lock(parts_.mutex);
    // The sandbox may have been released, and its users with it, at any time until now.
    if (status.ok()) {
      status = Patience{.stop = call.stop.get_token()}.Check("place layers for sandbox " + call.sandbox_id);
    }
    if (status.ok()) {
      SetWindows(parts_.records, request.attached_arenas, all);
    } else {
      for (const Placement& one : all)
        UndoPlacement(parts_.records, parts_.options, call.sandbox_id, one, chores);
      parts_.DropIdleLocked(parts_.options.idle_budget_bytes, chores);
    }
    EndTurn(call);
  }
  if (status.ok()) return all;
  parts_.Finish(chores);
  // The error that matters is the layer's; what could not be saved is with the next change.
  parts_.Save().IgnoreError();
  return status;
}

absl::Status LayerStore::TakeTurn(PlaceCall& call) {
  MutexLock lock(parts_.mutex);
  const auto it = calls_.emplace(call.sandbox_id, &call);
  while (!placing_.insert(call.sandbox_id).second) {
    const absl::Status status = parts_.Wait(
        call.patience, "place layers for sandbox " + call.sandbox_id + ": waiting for its other container");
    if (status.ok()) continue;
    calls_.erase(it);
    return status;
  }
  return absl::OkStatus();
}

void LayerStore::EndTurn(const PlaceCall& call) {
  placing_.erase(call.sandbox_id);
  std::erase_if(calls_, [&](const auto& item) { return item.second == &call; });
  parts_.changed.NotifyAll();
}

std::map<std::string, absl::StatusOr<Placement>> LayerStore::PlaceEach(
    PlaceCall& call, const std::vector<std::string>& sources) {
  // An image may name a layer twice; it is placed once.
  std::vector<std::string> wanted = sources;
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  std::map<std::string, absl::StatusOr<Placement>> placed;
  Mutex mutex;
  size_t next = 0;
  bool failed = false;
  // Converting is what takes long, and is bounded for the node by max_conversions.
  const size_t most = std::max<size_t>(
      {2, parts_.options.max_conversions, static_cast<size_t>(std::thread::hardware_concurrency())});
  SideBySide(std::min(wanted.size(), most), [&] {
    for (;;) {
      std::string source;
      {
        MutexLock lock(mutex);
        if (failed || next == wanted.size()) return;
        source = wanted[next++];
      }
      absl::StatusOr<Placement> one = placer_.Place(call, source);
      MutexLock lock(mutex);
      failed = failed || !one.ok();
      placed.emplace(source, std::move(one));
    }
  });
  return placed;
}

absl::Status LayerStore::ReleaseSandbox(const std::string& sandbox_id) { return Release({sandbox_id}); }

absl::Status LayerStore::RetainSandboxes(const std::set<std::string>& living) {
  std::set<std::string> gone;
  {
    MutexLock lock(parts_.mutex);
    gone = AllUsers(parts_.records);
  }
  for (const std::string& id : living) gone.erase(id);
  return gone.empty() ? absl::OkStatus() : Release(gone);
}

absl::Status LayerStore::Release(const std::set<std::string>& sandbox_ids) {
  EndCalls(sandbox_ids);
  bool changed = false;
  Chores chores;
  {
    MutexLock lock(parts_.mutex);
    for (const std::string& id : sandbox_ids)
      changed = ReleaseUser(parts_.records, parts_.options, id, chores) || changed;
    if (changed) parts_.DropIdleLocked(parts_.options.idle_budget_bytes, chores);
  }
  parts_.Finish(chores);
  return parts_.Save();
}

void LayerStore::EndCalls(const std::set<std::string>& sandbox_ids) {
  std::vector<std::stop_source> stops;
  {
    MutexLock lock(parts_.mutex);
    for (const auto& [id, call] : calls_) {
      if (sandbox_ids.count(id) != 0) stops.push_back(call->stop);
    }
  }
  if (stops.empty()) return;
  for (std::stop_source& stop : stops) stop.request_stop();
  MutexLock lock(parts_.mutex);
  parts_.changed.NotifyAll();
}

absl::StatusOr<uint64_t> LayerStore::Gc(uint64_t keep_bytes) {
  Chores chores;
  uint64_t freed = 0;
  {
    MutexLock lock(parts_.mutex);
    freed = parts_.DropIdleLocked(keep_bytes, chores);
  }
  parts_.Finish(chores);
  RETURN_IF_ERROR(parts_.Save());
  return freed;
}

absl::StatusOr<PackResult> LayerStore::Pack() { return PackArenas(parts_); }

std::vector<ArenaInfo> LayerStore::ArenasOf(const std::string& domain, size_t limit) const {
  std::vector<ArenaInfo> mine = arenas();
  std::erase_if(mine,
                [&](const ArenaInfo& info) { return info.domain != domain || info.payload_bytes == 0; });
  std::sort(mine.begin(), mine.end(),
            [](const auto& a, const auto& b) { return a.payload_bytes > b.payload_bytes; });
  if (mine.size() > limit) mine.resize(limit);
  return mine;
}

std::vector<ArenaInfo> LayerStore::arenas() const {
  MutexLock lock(parts_.mutex);
  return DescribeArenas(parts_.records);
}

std::vector<DiskInfo> LayerStore::disks() const {
  MutexLock lock(parts_.mutex);
  return DescribeDisks(parts_.records);
}

StoreCounters LayerStore::counters() const {
  StoreCounters counters;
  {
    MutexLock lock(parts_.mutex);
    counters = parts_.counters;
  }
  counters.converting = parts_.conversions.under_way().size();
  return counters;
}

std::vector<ConversionInfo> LayerStore::conversions() const { return parts_.conversions.under_way(); }

void LayerStore::LogProgress() const {
  for (const ConversionInfo& one : conversions()) {
    if (one.seconds < 10) continue;
    LogInfo("layer {}: being converted for {:.0f} s, {} MiB of its image written", one.source, one.seconds,
            one.bytes >> 20);
  }
}

}  // namespace lamina::layers
