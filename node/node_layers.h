// The shims' and people's calls about layers: places for a sandbox's layers, and what is where.
#pragma once

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "base/file_system.h"
#include "base/mutex.h"
#include "layers/layer_store.h"
#include "node/claims_book.h"
#include "proto/laminad.pb.h"
#include "proto/node/node.pb.h"

namespace lamina::node {

// Thread-safe.
class NodeLayers {
 public:
  // Opens the layer store in <state_dir>/layers. An index that is damaged or of a newer version is an error.
  // That nothing can be written (the disk is full) is none: PlaceLayers is then refused with the reason until
  // Retain has opened it.
  static absl::StatusOr<std::unique_ptr<NodeLayers>> Open(const Config& config, FileSystem& fs,
                                                          const ClaimsBook& book);

  // See proto/laminad.proto. FailedPrecondition: the sandbox has no claim of this generation, or lost it
  // meanwhile. Unavailable: the store is not open yet, and why.
  absl::StatusOr<laminad::v1::PlaceLayersResponse> PlaceLayers(const laminad::v1::PlaceLayersRequest& request,
                                                               const layers::Patience& patience = {});
  // The arenas that a sandbox's VM is to have from its boot on: none where VPMem is off.
  std::vector<layers::ArenaInfo> BootArenas(const laminad::v1::ClaimRequest& claim) const;
  // The sandbox uses none any more. Repeatable. OK while the store is not open: Retain will find it gone.
  absl::Status Release(const std::string& sandbox_id);
  // Once after a start: users that are not in `living` are gone. Opens the store where that failed before.
  // OK, and nothing to do, when it has succeeded before.
  absl::Status Retain(const std::set<std::string>& living);
  absl::StatusOr<uint64_t> GcLayers(uint64_t keep_bytes);
  absl::StatusOr<layers::PackResult> PackLayers();
  // A line in the log for each conversion that takes long.
  void LogProgress() const;

  // For people.
  lamina::node::v1::ArenaList arenas() const;
  lamina::node::v1::LayerList layers() const;
  // Null while it is not open.
  const layers::LayerStore* store() const { return store_.load(); }

 private:
  NodeLayers(const Config& config, FileSystem& fs, const ClaimsBook& book)
      : config_(config.layers), state_dir_(config.paths.state_dir), fs_(fs), book_(book) {}
  absl::Status OpenLocked() REQUIRES(mutex_);
  // Unavailable, with the reason, before Retain has succeeded.
  absl::StatusOr<layers::LayerStore*> Usable() const;
  // Who shares arenas with the sandbox.
  std::string DomainOf(const laminad::v1::ClaimRequest& claim) const;

  const Config::Layers config_;
  const std::string state_dir_;
  FileSystem& fs_;
  const ClaimsBook& book_;
  mutable Mutex mutex_;  // before the store's
  std::unique_ptr<layers::LayerStore> owned_ GUARDED_BY(mutex_);
  absl::Status problem_ GUARDED_BY(mutex_);  // why it is not open, or not in line with what lives
  bool retained_ GUARDED_BY(mutex_) = false;
  std::atomic<layers::LayerStore*> store_{nullptr};  // what is owned
};

}  // namespace lamina::node
