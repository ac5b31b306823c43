// The layers' side of a NodeState: places for a sandbox's layers, and what is where.
#include <algorithm>

#include "base/log.h"
#include "base/status.h"
#include "layers/sharing.h"
#include "node/node_state.h"

namespace lamina::node {

std::string NodeState::DomainOf(const laminad::v1::ClaimRequest& claim) const {
  // The config has been checked; what cannot be understood shares with nobody.
  const absl::StatusOr<layers::Sharing> sharing = layers::ParseSharing(config_.layers.sharing);
  return layers::DomainOf(sharing.ok() ? *sharing : layers::Sharing::kPod,
                          {claim.sandbox_id(), claim.pod_namespace()});
}

absl::StatusOr<laminad::v1::PlaceLayersResponse> NodeState::PlaceLayers(
    const laminad::v1::PlaceLayersRequest& request, const layers::Patience& patience) {
  layers::PlaceRequest place;
  place.patience = patience;
  {
    MutexLock lock(mutex_);
    const auto it = records_.find(request.sandbox_id());
    if (it == records_.end() || it->second.generation() != request.generation()) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition,
                        "place layers: sandbox {} has no claim of generation {}", request.sandbox_id(),
                        request.generation());
    }
    place.sandbox_id = request.sandbox_id();
    place.domain = DomainOf(it->second.claim());
  }
  for (const laminad::v1::Arena& arena : request.attached()) {
    uint64_t& window = place.attached_arenas[arena.id()];
    window = std::max(window, arena.bytes());
  }
  place.free_arena_slots = request.free_arena_slots();
  for (const std::string& source : request.sources()) {
    if (source.empty() || source[0] != '/')
      return InvalidArgument("place layers: \"{}\" is not an absolute path", source);
  }
  laminad::v1::PlaceLayersResponse response;
  const absl::StatusOr<std::vector<layers::Placement>> result =
      layers_->PlaceAll(place, {request.sources().begin(), request.sources().end()});
  if (!result.ok()) LogWarning("place layers for sandbox {}: {}", place.sandbox_id, Message(result.status()));
  for (const layers::Placement& placed : result.ok() ? *result : std::vector<layers::Placement>()) {
    laminad::v1::Placement* out = response.add_placements();
    out->set_layer_id(placed.layer_id);
    out->set_kind(placed.kind == layers::PlacementKind::kVpmem ? laminad::v1::Placement::VPMEM
                                                               : laminad::v1::Placement::SCSI);
    if (placed.kind == layers::PlacementKind::kVpmem) {
      out->mutable_arena()->set_id(placed.arena_id);
      out->mutable_arena()->set_path(placed.arena_path);
      out->mutable_arena()->set_bytes(placed.arena_bytes);
    }
    out->set_offset(placed.offset);
    out->set_payload_bytes(placed.payload_bytes);
    out->set_held_bytes(placed.held_bytes);
    out->set_image_path(placed.image_path);
    out->set_reused(placed.reused);
    out->set_why_scsi(placed.why_scsi);
    if (!placed.tree_path.empty()) {
      out->mutable_tree()->set_path(placed.tree_path);
      out->mutable_tree()->set_bytes(placed.tree.bytes);
      out->mutable_tree()->set_root_hash(placed.tree.root_hash);
    }
    out->set_convert_seconds(placed.convert_seconds);
    out->set_copy_seconds(placed.copy_seconds);
  }
  MutexLock lock(mutex_);
  // A release that came while layers were being made did not see them.
  if (records_.count(request.sandbox_id()) == 0) {
    RETURN_IF_ERROR(layers_->ReleaseSandbox(request.sandbox_id()));
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "place layers: sandbox {} was released meanwhile", request.sandbox_id());
  }
  RETURN_IF_ERROR(Annotate(result.status(), "place layers for sandbox " + request.sandbox_id()));
  return response;
}

absl::StatusOr<uint64_t> NodeState::GcLayers(uint64_t keep_bytes) { return layers_->Gc(keep_bytes); }
absl::StatusOr<layers::PackResult> NodeState::PackLayers() { return layers_->Pack(); }

lamina::node::v1::ArenaList NodeState::arenas() const {
  lamina::node::v1::ArenaList list;
  for (const layers::ArenaInfo& arena : layers_->arenas()) {
    auto* out = list.add_arenas();
    out->set_id(arena.id);
    out->set_domain(arena.domain);
    out->set_path(arena.path);
    out->set_bytes(arena.bytes);
    out->set_held_bytes(arena.held_bytes);
    out->set_payload_bytes(arena.payload_bytes);
    out->set_regions(arena.regions.size());
  }
  return list;
}

lamina::node::v1::LayerList NodeState::layers() const {
  lamina::node::v1::LayerList list;
  for (const layers::ArenaInfo& arena : layers_->arenas()) {
    for (const layers::RegionInfo& region : arena.regions) {
      auto* out = list.add_layers();
      out->set_id(region.layer_id);
      out->set_kind("vpmem");
      out->set_arena(arena.id);
      out->set_offset(region.offset);
      out->set_held_bytes(region.held_bytes);
      out->set_payload_bytes(region.payload_bytes);
      for (const std::string& user : region.users) out->add_users(user);
    }
  }
  for (const layers::DiskInfo& disk : layers_->disks()) {
    auto* out = list.add_layers();
    out->set_id(disk.layer_id);
    out->set_kind("scsi");
    out->set_held_bytes(disk.bytes);
    out->set_payload_bytes(disk.bytes);
    out->set_image_path(disk.path);
    out->set_why_scsi(disk.why);
    out->set_root_hash(disk.root_hash);
    for (const std::string& user : disk.users) out->add_users(user);
  }
  return list;
}

}  // namespace lamina::node
