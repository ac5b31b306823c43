// What a pod's containers have mounted beside their roots.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cri/oci_spec.h"
#include "cri/state_book.h"

namespace lamina::cri {

// Thread-safe, as long as each `held` has one thread.
class PodVolumes {
 public:
  explicit PodVolumes(StateBook& book) : book_(book) {}

  // Names of the volumes that one container uses.
  using Held = std::vector<std::string>;

  // Where the guest finds the bind mounts of a container's spec: index in its mounts -> path. On error `held`
  // says what there is to give back.
  absl::Status Take(const std::string& container_id, const BundleSpec& spec, Held& held,
                    std::map<size_t, std::string>& sources);
  // The container is gone, in the guest too. What could not be given back goes with the pod.
  absl::Status GiveBack(const Held& held);

 private:
  std::string SharedDir() const;

  StateBook& book_;
};

}  // namespace lamina::cri
