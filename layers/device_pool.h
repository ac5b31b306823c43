// Several devices of one size, each with an allocator of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "layers/pool_allocator.h"

namespace lamina::layers {

struct DeviceRegion {
  size_t device = 0;
  Region region;
};

// Not thread-safe.
class DevicePool {
 public:
  // InvalidArgument where the policy refuses the size.
  static absl::StatusOr<DevicePool> Create(Policy policy, uint64_t device_bytes, size_t devices);

  // In the first device that has room: the last ones stay empty longest and can be given back. Errors as
  // PoolAllocator::Allocate's; ResourceExhausted when no device has room.
  absl::StatusOr<DeviceRegion> Allocate(uint64_t bytes);
  // NotFound for a stale handle or a device that does not exist.
  absl::Status Release(size_t device, const Handle& handle);
  absl::Status AddDevice();

  size_t size() const { return devices_.size(); }
  // Sums; largest_free_bytes is the largest of any device.
  PoolStats stats() const;
  bool pristine() const;

 private:
  DevicePool(Policy policy, uint64_t device_bytes) : policy_(policy), device_bytes_(device_bytes) {}

  Policy policy_;
  uint64_t device_bytes_;
  std::vector<std::unique_ptr<PoolAllocator>> devices_;
};

}  // namespace lamina::layers
