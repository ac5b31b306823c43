// A VM's PCIe root ports, one place each for a device that comes later.
#pragma once

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/status.h"

namespace lamina::vmm {

// Thread-safe.
class HotplugPorts {
 public:
  explicit HotplugPorts(uint32_t count, const std::set<uint32_t>& used = {}) : used_(count, false) {
    for (const uint32_t port : used) used_.at(port) = true;
  }

  // The lowest that is free. ResourceExhausted.
  absl::StatusOr<uint32_t> Take() {
    MutexLock lock(mutex_);
    const auto it = std::find(used_.begin(), used_.end(), false);
    if (it == used_.end()) {
      return MakeStatus(absl::StatusCode::kResourceExhausted, "all {} hotplug ports of the VM are used",
                        used_.size());
    }
    *it = true;
    return static_cast<uint32_t>(it - used_.begin());
  }
  // What Take gave.
  void GiveBack(uint32_t port) {
    MutexLock lock(mutex_);
    used_[port] = false;
  }
  size_t free() const {
    MutexLock lock(mutex_);
    return static_cast<size_t>(std::count(used_.begin(), used_.end(), false));
  }

 private:
  mutable Mutex mutex_;
  std::vector<bool> used_ GUARDED_BY(mutex_);
};

}  // namespace lamina::vmm
