#include "node/node_layers.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/log.h"
#include "base/status.h"
#include "layers/sharing.h"

namespace lamina::node {
namespace {

// The pod's images are not known yet when its VM starts: what is attached in vain costs it memory.
constexpr uint32_t kBootArenas = 1;

}  // namespace

absl::StatusOr<std::unique_ptr<NodeLayers>> NodeLayers::Open(const Config& config, FileSystem& fs,
                                                             const ClaimsBook& book) {
  std::unique_ptr<NodeLayers> layers(new NodeLayers(config, fs, book));
  MutexLock lock(layers->mutex_);
  const absl::Status opened = layers->OpenLocked();
  // What is there and cannot be understood stays untouched. Whatever else fails may work later.
  for (const auto code : {absl::StatusCode::kFailedPrecondition, absl::StatusCode::kDataLoss,
                          absl::StatusCode::kInvalidArgument}) {
    if (opened.code() == code) return opened;
  }
  if (!opened.ok()) LogWarning("layers: {}; none is placed until that succeeds", Message(opened));
  return layers;
}

absl::Status NodeLayers::OpenLocked() {
  if (owned_ != nullptr) return absl::OkStatus();
  layers::StoreOptions options;
  options.dir = state_dir_ + "/layers";
  ASSIGN_OR_RETURN(options.policy, layers::ParsePolicy(config_.policy));
  options.arena_bytes = config_.arena_bytes;
  options.max_layer_bytes = config_.max_layer_bytes;
  options.vpmem = config_.vpmem;
  options.scsi_verity = config_.scsi_verity;
  options.idle_budget_bytes = config_.idle_budget_bytes;
  options.convert = {std::chrono::seconds(config_.convert_timeout_seconds), config_.convert_memory_bytes,
                     config_.convert_size_bytes};
  options.disk = {config_.disk_budget_bytes, config_.disk_reserve_bytes};
  absl::StatusOr<std::unique_ptr<layers::LayerStore>> store = layers::LayerStore::Open(fs_, options);
  problem_ = store.status();
  if (!store.ok()) return problem_;
  owned_ = std::move(*store);
  store_ = owned_.get();
  // What is missing is said at the start, and without mkfs.erofs there may be no layer to convert.
  if (const absl::Status confined = owned_->confinement(); absl::IsNotFound(confined))
    LogWarning("no layer can be converted: {}", Message(confined));
  return absl::OkStatus();
}

absl::StatusOr<layers::LayerStore*> NodeLayers::Usable() const {
  MutexLock lock(mutex_);
  if (retained_) return owned_.get();
  return MakeStatus(
      absl::StatusCode::kUnavailable, "the layer store cannot be used: {}",
      problem_.ok() ? "laminad has not reconciled with the running VMs yet" : Message(problem_));
}

std::string NodeLayers::DomainOf(const laminad::v1::ClaimRequest& claim) const {
  // The config has been checked; what cannot be understood shares with nobody.
  const absl::StatusOr<layers::Sharing> sharing = layers::ParseSharing(config_.sharing);
  return layers::DomainOf(sharing.ok() ? *sharing : layers::Sharing::kPod,
                          {claim.sandbox_id(), claim.pod_namespace()});
}

absl::StatusOr<laminad::v1::PlaceLayersResponse> NodeLayers::PlaceLayers(
    const laminad::v1::PlaceLayersRequest& request, const layers::Patience& patience) {
  ASSIGN_OR_RETURN(layers::LayerStore* const store, Usable());
  layers::PlaceRequest place;
  place.patience = patience;
  {
    const std::optional<laminad::v1::ClaimRecord> record = book_.Find(request.sandbox_id());
    if (!record || record->generation() != request.generation()) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition,
                        "place layers: sandbox {} has no claim of generation {}", request.sandbox_id(),
                        request.generation());
    }
    place.sandbox_id = request.sandbox_id();
    place.domain = DomainOf(record->claim());
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
      store->PlaceAll(place, {request.sources().begin(), request.sources().end()});
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
  // A release that came while layers were being made did not see them; one that comes now does.
  if (!book_.Find(request.sandbox_id())) {
    RETURN_IF_ERROR(store->ReleaseSandbox(request.sandbox_id()));
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "place layers: sandbox {} was released meanwhile", request.sandbox_id());
  }
  RETURN_IF_ERROR(Annotate(result.status(), "place layers for sandbox " + request.sandbox_id()));
  return response;
}

std::vector<layers::ArenaInfo> NodeLayers::BootArenas(const laminad::v1::ClaimRequest& claim) const {
  const layers::LayerStore* const store = store_;
  if (!config_.vpmem || store == nullptr) return {};
  return store->ArenasOf(DomainOf(claim), std::min(kBootArenas, config_.max_arenas_per_pod));
}

absl::Status NodeLayers::Release(const std::string& sandbox_id) {
  layers::LayerStore* const store = store_;
  return store == nullptr ? absl::OkStatus() : store->ReleaseSandbox(sandbox_id);
}

absl::Status NodeLayers::Retain(const std::set<std::string>& living) {
  MutexLock lock(mutex_);
  if (retained_) return absl::OkStatus();
  RETURN_IF_ERROR(OpenLocked());
  problem_ = owned_->RetainSandboxes(living);
  retained_ = problem_.ok();
  return problem_;
}

void NodeLayers::LogProgress() const {
  if (const layers::LayerStore* const store = store_; store != nullptr) store->LogProgress();
}

absl::StatusOr<uint64_t> NodeLayers::GcLayers(uint64_t keep_bytes) {
  ASSIGN_OR_RETURN(layers::LayerStore* const store, Usable());
  return store->Gc(keep_bytes);
}

absl::StatusOr<layers::PackResult> NodeLayers::PackLayers() {
  ASSIGN_OR_RETURN(layers::LayerStore* const store, Usable());
  return store->Pack();
}

lamina::node::v1::ArenaList NodeLayers::arenas() const {
  lamina::node::v1::ArenaList list;
  const layers::LayerStore* const store = store_;
  if (store == nullptr) return list;
  for (const layers::ArenaInfo& arena : store->arenas()) {
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

lamina::node::v1::LayerList NodeLayers::layers() const {
  lamina::node::v1::LayerList list;
  const layers::LayerStore* const store = store_;
  if (store == nullptr) return list;
  for (const layers::ArenaInfo& arena : store->arenas()) {
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
  for (const layers::DiskInfo& disk : store->disks()) {
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
