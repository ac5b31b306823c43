// The node's layers: each converted once, placed in an arena of its sharing domain or kept as a disk image.
// docs/layers.md has the parts, the files and the locks.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/file_system.h"
#include "layers/arena_file.h"
#include "layers/erofs_image.h"
#include "layers/layer_images.h"
#include "layers/layer_placer.h"
#include "layers/layer_types.h"
#include "layers/store_parts.h"

namespace lamina::layers {

// Thread-safe. No call may be under way when it is destroyed; conversions that nobody waits for are ended.
class LayerStore {
 public:
  // Reads the index; refuses one of a newer version, untouched (FailedPrecondition). Files that the index
  // does not know are removed. `maker` replaces ErofsMaker in tests, `arenas` the kernel's files.
  static absl::StatusOr<std::unique_ptr<LayerStore>> Open(FileSystem& fs, StoreOptions options,
                                                          ImageMaker maker = nullptr,
                                                          ArenaFiles& arenas = ArenaFiles::Real());

  // A place for one layer; the sandbox is a user of it until ReleaseSandbox, once however often it asks. SCSI
  // only where VPMem cannot serve (too large, no room, no slot, switched off); any other failure is an error
  // and leaves nothing placed. Who waits for another's conversion of the layer gets its error.
  // DeadlineExceeded, Cancelled: the request's patience ended, or the sandbox was released meanwhile.
  absl::StatusOr<Placement> Place(const PlaceRequest& request);

  // The same for all layers of a container (`request.source` is not looked at), different ones in parallel;
  // they share the VM's slots. Placements in the order of `sources`, or the first error, which names its
  // layer: then the sandbox uses what it used before, and nothing more. One call at a time per sandbox.
  absl::StatusOr<std::vector<Placement>> PlaceAll(const PlaceRequest& request,
                                                  const std::vector<std::string>& sources);

  // Ends the sandbox's placing that is under way. Idempotent. Layers without users stay as a cache until room
  // or budget asks for them.
  absl::Status ReleaseSandbox(const std::string& sandbox_id);
  // After a restart: users that are not in `living` are gone.
  absl::Status RetainSandboxes(const std::set<std::string>& living);
  // Drops layers without users, least recently used first, until at most `keep_bytes` of them are held.
  // Returns bytes freed.
  absl::StatusOr<uint64_t> Gc(uint64_t keep_bytes);
  // See layers/layer_pack.h.
  absl::StatusOr<PackResult> Pack();

  // The domain's arenas that hold layers, fullest first, at most `limit`.
  std::vector<ArenaInfo> ArenasOf(const std::string& domain, size_t limit) const;
  std::vector<ArenaInfo> arenas() const;
  std::vector<DiskInfo> disks() const;
  StoreCounters counters() const;
  // Those under way, and a line in the log for each that has taken over ten seconds.
  std::vector<ConversionInfo> conversions() const;
  void LogProgress() const;
  // What is missing on this node of the confinement of what reads layers (ErofsMaker::confinement).
  absl::Status confinement() const;

 private:
  LayerStore(FileSystem& fs, ArenaFiles& arenas, StoreOptions options, ImageMaker maker)
      : parts_(fs, arenas, std::move(options), std::move(maker)) {}

  absl::Status Load();
  // Waits until no other call of the sandbox places layers.
  absl::Status TakeTurn(PlaceCall& call);
  void EndTurn(const PlaceCall& call) REQUIRES(parts_.mutex);
  // Distinct sources, side by side.
  std::map<std::string, absl::StatusOr<Placement>> PlaceEach(PlaceCall& call,
                                                             const std::vector<std::string>& sources);
  void EndCalls(const std::set<std::string>& sandbox_ids);
  absl::Status Release(const std::set<std::string>& sandbox_ids);

  std::shared_ptr<ErofsMaker> mkfs_;  // null: another maker
  mutable StoreParts parts_;
  LayerImages images_{parts_};
  LayerPlacer placer_{parts_, images_};
  std::set<std::string> placing_ GUARDED_BY(parts_.mutex);                 // sandboxes whose turn is taken
  std::multimap<std::string, PlaceCall*> calls_ GUARDED_BY(parts_.mutex);  // by sandbox, those that wait too
};

}  // namespace lamina::layers
