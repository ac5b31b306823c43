// The shims' and people's calls about layers: places for a sandbox's layers, and what is where.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "base/file_system.h"
#include "layers/layer_store.h"
#include "node/claims_book.h"
#include "proto/laminad.pb.h"
#include "proto/node/node.pb.h"

namespace lamina::node {

// Thread-safe.
class NodeLayers {
 public:
  // Opens the layer store in <state_dir>/layers; its errors.
  static absl::StatusOr<std::unique_ptr<NodeLayers>> Open(const Config& config, FileSystem& fs,
                                                          const ClaimsBook& book);

  // See proto/laminad.proto. FailedPrecondition: the sandbox has no claim of this generation, or lost it
  // meanwhile.
  absl::StatusOr<laminad::v1::PlaceLayersResponse> PlaceLayers(
      const laminad::v1::PlaceLayersRequest& request);
  // The arenas that a sandbox's VM is to have from its boot on: none where VPMem is off.
  std::vector<layers::ArenaInfo> BootArenas(const laminad::v1::ClaimRequest& claim) const;
  // The sandbox uses none any more. Repeatable.
  absl::Status Release(const std::string& sandbox_id);
  // After a start: users that are not in `living` are gone.
  absl::Status Retain(const std::set<std::string>& living);
  absl::StatusOr<uint64_t> GcLayers(uint64_t keep_bytes);
  absl::StatusOr<layers::PackResult> PackLayers();
  // A line in the log for each conversion that takes long.
  void LogProgress() const { store_->LogProgress(); }

  // For people.
  lamina::node::v1::ArenaList arenas() const;
  lamina::node::v1::LayerList layers() const;
  const layers::LayerStore& store() const { return *store_; }

 private:
  NodeLayers(const Config::Layers& config, const ClaimsBook& book, std::unique_ptr<layers::LayerStore> store)
      : config_(config), book_(book), store_(std::move(store)) {}
  // Who shares arenas with the sandbox.
  std::string DomainOf(const laminad::v1::ClaimRequest& claim) const;

  const Config::Layers config_;
  const ClaimsBook& book_;
  const std::unique_ptr<layers::LayerStore> store_;
};

}  // namespace lamina::node
