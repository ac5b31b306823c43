#include "layers/device_pool.h"

#include <algorithm>

#include "base/status.h"

namespace lamina::layers {

absl::StatusOr<DevicePool> DevicePool::Create(Policy policy, uint64_t device_bytes, size_t devices) {
  DevicePool pool(policy, device_bytes);
  for (size_t i = 0; i < devices; ++i) RETURN_IF_ERROR(pool.AddDevice());
  return pool;
}

absl::Status DevicePool::AddDevice() {
  ASSIGN_OR_RETURN(std::unique_ptr<PoolAllocator> device, MakeAllocator(policy_, device_bytes_));
  devices_.push_back(std::move(device));
  return absl::OkStatus();
}

absl::StatusOr<DeviceRegion> DevicePool::Allocate(uint64_t bytes) {
  for (size_t i = 0; i < devices_.size(); ++i) {
    absl::StatusOr<Region> region = devices_[i]->Allocate(bytes);
    if (region.ok()) return DeviceRegion{i, *region};
    if (region.status().code() != absl::StatusCode::kResourceExhausted) return region.status();
  }
  return MakeStatus(absl::StatusCode::kResourceExhausted,
                    "a region of {} bytes: not enough space in any of {} devices", bytes, devices_.size());
}

absl::Status DevicePool::Release(size_t device, const Handle& handle) {
  if (device >= devices_.size()) {
    return MakeStatus(absl::StatusCode::kNotFound, "region at {} of device {}: not allocated", handle.offset,
                      device);
  }
  return devices_[device]->Release(handle);
}

PoolStats DevicePool::stats() const {
  PoolStats sum;
  for (const auto& device : devices_) {
    const PoolStats one = device->stats();
    sum.capacity_bytes += one.capacity_bytes;
    sum.held_bytes += one.held_bytes;
    sum.payload_bytes += one.payload_bytes;
    sum.live += one.live;
    sum.largest_free_bytes = std::max(sum.largest_free_bytes, one.largest_free_bytes);
  }
  return sum;
}

bool DevicePool::pristine() const {
  return std::all_of(devices_.begin(), devices_.end(), [](const auto& device) { return device->pristine(); });
}

}  // namespace lamina::layers
