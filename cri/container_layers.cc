#include "cri/container_layers.h"

#include <algorithm>
#include <set>

#include "base/log.h"
#include "base/status.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"

namespace lamina::cri {
namespace {

using laminad::v1::Placement;
using std::chrono::steady_clock;

constexpr std::chrono::seconds kMountTimeout{60};

double Seconds(steady_clock::time_point from, steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

void ContainerLayers::Attach(vmm::Vm& vm, ttrpc::Caller& agent) {
  vm_ = &vm;
  agent_ = &agent;
}

void ContainerLayers::Restore(const persist::SandboxState& state) {
  MutexLock lock(mutex_);
  layers_.clear();
  for (const persist::PlacedLayer& place : state.layers) layers_[place.id] = {place, 0};
  for (const auto& [id, container] : state.containers) {
    for (const std::string& layer : std::set(container.layer_ids.begin(), container.layer_ids.end())) {
      if (const auto it = layers_.find(layer); it != layers_.end()) ++it->second.users;
    }
  }
  std::erase_if(layers_, [](const auto& entry) { return entry.second.users == 0; });
}

void ContainerLayers::FillIn(persist::SandboxState& state) const {
  std::set<std::string> arenas;
  if (vm_ != nullptr) {
    for (const vmm::ArenaDevice& arena : vm_->arenas()) arenas.insert(arena.id);
  }
  state.arenas.assign(arenas.begin(), arenas.end());
  state.layers.clear();
  MutexLock lock(mutex_);
  for (const auto& [id, layer] : layers_) state.layers.push_back(layer.place);
}

laminad::v1::PlaceLayersRequest ContainerLayers::PlaceRequest(const std::vector<std::string>& sources) const {
  laminad::v1::PlaceLayersRequest request;
  book_.Look([&](const persist::SandboxState& state) {
    request.set_sandbox_id(state.sandbox_id);
    request.set_generation(state.claim_generation);
  });
  for (const std::string& source : sources) request.add_sources(source);
  const std::vector<vmm::ArenaDevice> attached = vm_->arenas();
  for (const vmm::ArenaDevice& arena : attached) {
    laminad::v1::Arena* window = request.add_attached();
    window->set_id(arena.id);
    window->set_bytes(arena.bytes);
  }
  // One port stays for the first SCSI controller.
  const size_t ports = vm_->free_ports();
  const size_t left = max_arenas_ > attached.size() ? max_arenas_ - attached.size() : 0;
  request.set_free_arena_slots(static_cast<uint32_t>(std::min(ports > 0 ? ports - 1 : 0, left)));
  return request;
}

absl::Status ContainerLayers::Mount(const std::string& container_id, const std::vector<std::string>& sources,
                                    std::chrono::nanoseconds timeout, Mounted& mounted) {
  const auto begin = steady_clock::now();
  ASSIGN_OR_RETURN(const laminad::v1::PlaceLayersResponse placed,
                   laminad_.PlaceLayers(PlaceRequest(sources), timeout));
  const auto in_place = steady_clock::now();
  agent::v1::MountLayersRequest mount;
  MutexLock lock(mutex_);
  std::set<std::string> seen;
  for (const Placement& placement : placed.placements()) {
    // An image may have the same layer twice; all that the lower one shows, the upper one shows above it.
    if (!seen.insert(placement.layer_id()).second) continue;
    mounted.ids.push_back(placement.layer_id());
    Layer& layer = layers_[placement.layer_id()];
    if (layer.users++ == 0) {
      ASSIGN_OR_RETURN(*mount.add_layers(), AttachLayer(placement, layer.place, mounted));
      continue;
    }
    // By another container of the pod: it stays where it is.
    for (const std::string& path : {layer.place.image_path, layer.place.tree_path}) {
      if (path.empty()) continue;
      ASSIGN_OR_RETURN(const uint64_t reservation, vm_->scsi().Reserve(path));
      mounted.disks.push_back(reservation);
      mounted.images.push_back(path);
    }
  }
  const auto attached = steady_clock::now();
  double waited = 0;
  if (mount.layers_size() > 0) {
    const auto answer = ttrpc::Call(*agent_, guest::kMountLayers, mount, kMountTimeout);
    if (!answer.ok()) return Annotate(answer.status(), "mount the image's layers");
    for (const agent::v1::LayerResult& result : answer->results()) waited += result.wait_device_seconds();
  }
  LogInfo(
      "container {} has its layers: placed in {:.3f} s, attached in {:.3f} s, mounted in {:.3f} s, of which "
      "the guest waited {:.3f} s for devices",
      container_id, Seconds(begin, in_place), Seconds(in_place, attached),
      Seconds(attached, steady_clock::now()), waited);
  return absl::OkStatus();
}

absl::StatusOr<agent::v1::Layer> ContainerLayers::AttachLayer(const Placement& placement,
                                                              persist::PlacedLayer& place, Mounted& mounted) {
  agent::v1::Layer layer;
  layer.set_id(placement.layer_id());
  place = {.id = placement.layer_id(),
           .arena = placement.arena().id(),
           .offset = placement.offset(),
           .size = placement.payload_bytes(),
           .image_path = placement.image_path(),
           .tree_path = placement.tree().path(),
           .device = ""};
  switch (placement.kind()) {
    case Placement::VPMEM: {
      const laminad::v1::Arena& arena = placement.arena();
      ASSIGN_OR_RETURN(place.device, vm_->AttachArena({arena.id(), arena.path(), arena.bytes()},
                                                      placement.offset() + placement.payload_bytes()));
      layer.mutable_pmem()->set_pci_path(place.device);
      layer.mutable_pmem()->set_offset(placement.offset());
      layer.mutable_pmem()->set_size(placement.payload_bytes());
      return layer;
    }
    case Placement::SCSI: {
      ASSIGN_OR_RETURN(*layer.mutable_scsi(),
                       AttachDisk(placement.image_path(), placement.payload_bytes(), mounted));
      if (placement.has_tree()) {
        ASSIGN_OR_RETURN(*layer.mutable_verity()->mutable_tree(),
                         AttachDisk(placement.tree().path(), placement.tree().bytes(), mounted));
        layer.mutable_verity()->set_root_hash(placement.tree().root_hash());
      }
      place.device = fmt::format("{} lun {}", layer.scsi().pci_path(), layer.scsi().lun());
      LogInfo("layer {} comes as a disk{}: {}", placement.layer_id(),
              placement.has_tree() ? " with a hash tree, root " + placement.tree().root_hash() : "",
              placement.why_scsi());
      return layer;
    }
    default:
      return MakeStatus(absl::StatusCode::kInternal, "laminad answered layer {} without a place",
                        placement.layer_id());
  }
}

absl::StatusOr<agent::v1::ScsiDisk> ContainerLayers::AttachDisk(const std::string& image, uint64_t bytes,
                                                                Mounted& mounted) {
  ASSIGN_OR_RETURN(const uint64_t reservation, vm_->scsi().Reserve(image));
  mounted.disks.push_back(reservation);
  mounted.images.push_back(image);
  ASSIGN_OR_RETURN(const vmm::DiskPlace place, vm_->scsi().Map(reservation));
  agent::v1::ScsiDisk disk;
  disk.set_pci_path(place.pci_path);
  disk.set_target(place.target);
  disk.set_lun(place.lun);
  disk.set_size(bytes);
  return disk;
}

absl::Status ContainerLayers::Unmount(const Mounted& mounted) {
  agent::v1::UnmountLayersRequest request;
  MutexLock lock(mutex_);
  for (const std::string& id : std::set(mounted.ids.begin(), mounted.ids.end())) {
    const auto it = layers_.find(id);
    if (it == layers_.end() || --it->second.users > 0) continue;
    layers_.erase(it);
    request.add_ids(id);
  }
  absl::Status status;
  if (request.ids_size() > 0)
    status = ttrpc::Call(*agent_, guest::kUnmountLayers, request, kMountTimeout).status();
  // A disk that the guest has not let go of stays until the VM's end.
  if (!status.ok()) return status;
  for (const uint64_t reservation : mounted.disks) status.Update(vm_->scsi().Unmap(reservation));
  return status;
}

}  // namespace lamina::cri
