// The node's layers: each converted once, placed in an arena of its sharing domain or kept as a disk image.
// docs/layers.md has the files and the locks.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/file_system.h"
#include "base/mutex.h"
#include "layers/erofs_image.h"
#include "layers/layer_types.h"
#include "layers/pool_allocator.h"
#include "layers/verity.h"

namespace lamina::layers {

// Thread-safe. Conversions and copies run outside the lock; the same layer asked for by many is made by one.
class LayerStore {
 public:
  ~LayerStore();

  using Maker =
      std::function<absl::StatusOr<Image>(const std::string& directory, const std::string& image_path)>;

  // Reads the index; refuses one of a newer version, untouched (FailedPrecondition). Files that the index
  // does not know are removed. `maker` replaces MakeErofsImage in tests.
  static absl::StatusOr<std::unique_ptr<LayerStore>> Open(FileSystem& fs, StoreOptions options,
                                                          Maker maker = nullptr);

  // A place for one layer; the sandbox is a user of it until ReleaseSandbox, once however often it asks. SCSI
  // only where VPMem cannot serve (too large, no room, no slot, switched off); any other failure is an error
  // and leaves nothing placed. Who waits for another's placing of the layer gets its error. DeadlineExceeded:
  // the wait was longer than the request allows.
  absl::StatusOr<Placement> Place(const PlaceRequest& request);

  // The same for all layers of a container (`request.source` is not looked at), different ones in parallel;
  // they share the VM's slots. Placements in the order of `sources`, or the first error, which names its
  // layer: then the sandbox uses what it used before, and nothing more. One call at a time per sandbox.
  absl::StatusOr<std::vector<Placement>> PlaceAll(const PlaceRequest& request,
                                                  const std::vector<std::string>& sources);

  // Idempotent. Layers without users stay as a cache until room or budget asks for them.
  absl::Status ReleaseSandbox(const std::string& sandbox_id);
  // After a restart: users that are not in `living` are gone.
  absl::Status RetainSandboxes(const std::set<std::string>& living);
  // Drops layers without users, least recently used first, until at most `keep_bytes` of them are held.
  // Returns bytes freed.
  absl::StatusOr<uint64_t> Gc(uint64_t keep_bytes);
  // Moves the layers of arenas that nobody uses, the emptiest first, to the other arenas of their domain,
  // where that empties the arena: fewer devices for the next pods. An arena is moved whole or not at all; a
  // copy is checked before the old one goes.
  absl::StatusOr<PackResult> Pack();

  // The domain's arenas that hold layers, fullest first, at most `limit`.
  std::vector<ArenaInfo> ArenasOf(const std::string& domain, size_t limit) const;
  std::vector<ArenaInfo> arenas() const;
  std::vector<DiskInfo> disks() const;
  StoreCounters counters() const;
  // Those under way, and a line in the log for each that has taken over ten seconds.
  std::vector<ConversionInfo> conversions() const;
  void LogProgress() const;

 private:
  struct Entry;
  struct Arena;
  struct Disk;
  struct Move;
  // A VM's windows and slots during a call that places layers for it. Guarded by mutex_.
  struct Devices {
    std::map<std::string, uint64_t> windows;
    size_t free = 0;
    bool save_later = false;  // the caller saves the index once, for all
  };
  struct Conversion {
    std::string source;
    std::chrono::steady_clock::time_point start;
  };
  struct Flight {
    bool landed = false;
    absl::Status error;  // for those who wait
  };
  struct Obtained {
    Image image;
    bool made = false;           // converted or copied: bytes that were not there before
    std::string pinned;          // key in disks_ of the disk that the image is
    std::string temporary;       // to be removed unless it became a disk
    VerityTree tree;             // the disk's, once it is known
    std::string temporary_tree;  // the same as `temporary`
  };

  LayerStore(FileSystem& fs, StoreOptions options, Maker maker);

  absl::Status Load();
  absl::Status SaveLocked() REQUIRES(mutex_);
  absl::StatusOr<Placement> PlaceOne(const PlaceRequest& request, Devices& devices);
  absl::StatusOr<Placement> PlaceAlone(const PlaceRequest& request, Devices& devices, const std::string& key,
                                       bool is_directory);
  absl::StatusOr<Obtained> Obtain(const PlaceRequest& request, const std::string& key, bool is_directory,
                                  Placement& placement);
  absl::StatusOr<Image> Convert(const PlaceRequest& request, const std::string& key,
                                const std::string& digest, const std::string& to, Placement& placement);
  bool CopyFromOtherDomain(const std::string& digest, const std::string& to, Image& image);
  // Finds the layer in the domain's arenas, or copies `image` (which may be null) there. False: not found, or
  // `why_not`.
  absl::StatusOr<bool> PlaceInArena(const PlaceRequest& request, Devices& devices, const std::string& digest,
                                    const Obtained* image, Placement& placement, std::string& why_not);
  absl::StatusOr<bool> FillRegion(const PlaceRequest& request, const Devices& devices, const Image& image,
                                  Placement& placement);
  // Makes the tree of what is to become a disk, unless the disk has one.
  absl::Status AddTree(Obtained& obtained);
  absl::StatusOr<Placement> PlaceAsDisk(const PlaceRequest& request, const Devices& devices,
                                        Obtained& obtained, Placement placement);
  // True when the region's bytes are the layer's; a damaged one loses its name.
  bool CheckRegion(const PlaceRequest& request, const Placement& placement);

  std::string KnownDigestLocked(const std::string& key) const REQUIRES(mutex_);
  Entry* FindRegionLocked(const PlaceRequest& request, Devices& devices, const std::string& digest,
                          Arena*& arena) REQUIRES(mutex_);
  absl::Status UseLocked(const Devices& devices, std::set<std::string>& users, const std::string& sandbox_id)
      REQUIRES(mutex_);
  absl::Status SaveFor(const Devices& devices) REQUIRES(mutex_);
  Arena* FindRoomLocked(const PlaceRequest& request, Devices& devices, uint64_t bytes, Region& region,
                        std::string& why_not, absl::Status& error) REQUIRES(mutex_);
  bool Reach(Devices& devices, const Arena& arena, const Region& region) const;
  void SetWindowsLocked(const PlaceRequest& request, std::vector<Placement>& placements) const
      REQUIRES(mutex_);
  void UndoUseLocked(const std::string& sandbox_id, const Placement& placement) REQUIRES(mutex_);
  bool EvictOneLocked(Arena& arena) REQUIRES(mutex_);
  void DropRegionLocked(Arena& arena, const std::string& digest) REQUIRES(mutex_);
  void DropDiskLocked(const std::string& key) REQUIRES(mutex_);
  void DropEmptyArenasLocked() REQUIRES(mutex_);
  uint64_t GcLocked(uint64_t keep_bytes) REQUIRES(mutex_);
  Arena* EmptiestIdleLocked(const std::set<std::string>& but) REQUIRES(mutex_);
  bool PlanMovesLocked(Arena& from, std::vector<Move>& moves) REQUIRES(mutex_);
  absl::Status MoveLayer(const Move& move, PackResult& result);
  bool Ours(const std::string& path) const;
  std::string TreePath(const std::string& digest) const;

  FileSystem& fs_;
  const StoreOptions options_;
  const Maker maker_;
  mutable Mutex mutex_;
  CondVar flight_ended_;
  std::map<std::string, std::shared_ptr<Flight>> flights_ GUARDED_BY(mutex_);  // by source key
  std::set<std::string> filling_ GUARDED_BY(mutex_);                           // "digest|domain" being copied
  std::set<std::string> placing_ GUARDED_BY(mutex_);                 // sandboxes with a PlaceAll under way
  std::map<std::string, Conversion> converting_ GUARDED_BY(mutex_);  // by the file that is written
  std::map<std::string, std::string> digests_ GUARDED_BY(mutex_);    // source key -> digest
  std::map<std::string, std::unique_ptr<Arena>> arenas_ GUARDED_BY(mutex_);
  std::map<std::string, std::unique_ptr<Disk>> disks_
      GUARDED_BY(mutex_);  // by digest, a foreign blob's by "digest@path"
  StoreCounters counters_ GUARDED_BY(mutex_);
  uint64_t next_arena_ GUARDED_BY(mutex_) = 1;
  uint64_t next_temp_ GUARDED_BY(mutex_) = 1;
  uint64_t use_clock_ GUARDED_BY(mutex_) = 1;
  bool unsaved_ GUARDED_BY(mutex_) = false;  // a save failed
};

}  // namespace lamina::layers
