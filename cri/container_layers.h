// The image layers of a pod's containers: placed by laminad, attached to the VM, mounted in the guest; each
// once, however many containers have it.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/ttrpc/method.h"
#include "cri/laminad_client.h"
#include "cri/state_book.h"
#include "proto/agent.pb.h"
#include "proto/laminad.pb.h"
#include "vmm/vm.h"

namespace lamina::cri {

// Thread-safe. Its lock is held while layers are attached, mounted or unmounted, never while laminad places
// them.
class ContainerLayers {
 public:
  // `max_arenas`: that one VM may have (layers.max_arenas_per_pod).
  ContainerLayers(size_t max_arenas, StateBook& book, LaminadClient& laminad)
      : max_arenas_(max_arenas), book_(book), laminad_(laminad) {}

  // What one container has of them.
  struct Mounted {
    std::vector<std::string> ids;     // topmost first
    std::vector<uint64_t> disks;      // reservations at the VM
    std::vector<std::string> images;  // the files behind those disks
  };

  // The VM and its agent, which must live as long as this is used.
  void Attach(vmm::Vm& vm, ttrpc::Caller& agent);
  // Layers that the guest has already, for containers that the state names. For one who goes on where another
  // process stopped; disks of the VM that were attached by it are given back with the VM.
  void Restore(const persist::SandboxState& state);

  // `sources` as LayerSources gives them, topmost first. On error `mounted` says what there is to Unmount.
  // Placing ends by `timeout`, the rest is bounded by itself. Cancelled: CancelPlacing.
  absl::Status Mount(const std::string& container_id, const std::vector<std::string>& sources,
                     std::chrono::nanoseconds timeout, Mounted& mounted);
  // The last container that has a layer unmounts it. On error what the guest has not let go of stays until
  // the VM's end. Not to be repeated.
  absl::Status Unmount(const Mounted& mounted);
  // Mount calls that wait for laminad end.
  void CancelPlacing() { laminad_.CancelPlacing(); }

  // Arenas and layers that the VM has, as the state names them.
  void FillIn(persist::SandboxState& state) const;

 private:
  struct Layer {
    persist::PlacedLayer place;
    uint32_t users = 0;
  };

  laminad::v1::PlaceLayersRequest PlaceRequest(const std::vector<std::string>& sources) const;
  // Attaches what carries the layer and says where the guest finds it.
  absl::StatusOr<agent::v1::Layer> AttachLayer(const laminad::v1::Placement& placement,
                                               persist::PlacedLayer& place, Mounted& mounted)
      REQUIRES(mutex_);
  absl::StatusOr<agent::v1::ScsiDisk> AttachDisk(const std::string& image, uint64_t bytes, Mounted& mounted)
      REQUIRES(mutex_);

  const size_t max_arenas_;
  StateBook& book_;
  LaminadClient& laminad_;
  vmm::Vm* vm_ = nullptr;
  ttrpc::Caller* agent_ = nullptr;
  mutable Mutex mutex_;
  std::map<std::string, Layer> layers_ GUARDED_BY(mutex_);  // by id
};

}  // namespace lamina::cri
