// Layer sizes as they are met in the wild, and the experiments of docs/layers.md on them. Seeded: equal seeds
// give equal figures.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "base/units.h"
#include "layers/device_pool.h"

namespace lamina::layers {

inline constexpr uint64_t kTraceDevice = 4 * kGiB;

// Log-normal, median 4 MiB, sigma 2.5, whole pages, none larger than a device.
class LayerSizes {
 public:
  explicit LayerSizes(uint64_t seed) : random_(seed), size_(std::log(4.0 * kMiB), 2.5) {}
  uint64_t Next() {
    for (;;) {
      const double bytes = size_(random_);
      if (bytes > static_cast<double>(kTraceDevice)) continue;
      return std::max<uint64_t>(1, static_cast<uint64_t>(std::ceil(bytes / 4096))) * 4096;
    }
  }
  // 0 … n-1
  size_t Pick(size_t n) { return random_() % n; }

 private:
  std::mt19937_64 random_;
  std::lognormal_distribution<double> size_;
};

struct FillResult {
  double used = 0;        // payload / capacity
  double efficiency = 0;  // payload / held
};

// Layers arrive and none leaves, until one finds no room.
inline FillResult FillToFirstMiss(Policy policy, size_t devices, uint64_t seed) {
  DevicePool pool = *DevicePool::Create(policy, kTraceDevice, devices);
  LayerSizes sizes(seed);
  while (pool.Allocate(sizes.Next()).ok()) {
  }
  const PoolStats stats = pool.stats();
  return {static_cast<double>(stats.payload_bytes) / static_cast<double>(stats.capacity_bytes),
          static_cast<double>(stats.payload_bytes) / static_cast<double>(stats.held_bytes)};
}

struct LiveResult {
  size_t fresh = 0, after = 0;  // devices
  double efficiency = 0;
};

// Devices added whenever a layer finds no room: to hold `live_bytes`, then after `replacements` times a
// random layer leaves and new ones come until as much is live again.
inline LiveResult DevicesForLive(Policy policy, uint64_t live_bytes, size_t replacements, uint64_t seed) {
  struct Layer {
    DeviceRegion place;
    uint64_t bytes;
  };
  DevicePool pool = *DevicePool::Create(policy, kTraceDevice, 1);
  LayerSizes sizes(seed);
  std::vector<Layer> layers;
  uint64_t live = 0;
  const auto fill = [&] {
    while (live < live_bytes) {
      const uint64_t bytes = sizes.Next();
      absl::StatusOr<DeviceRegion> place = pool.Allocate(bytes);
      if (!place.ok()) {
        (void)pool.AddDevice();
        place = pool.Allocate(bytes);
      }
      layers.push_back({*place, bytes});
      live += bytes;
    }
  };
  fill();
  LiveResult result;
  result.fresh = pool.size();
  for (size_t i = 0; i < replacements; ++i) {
    std::swap(layers[sizes.Pick(layers.size())], layers.back());
    (void)pool.Release(layers.back().place.device, layers.back().place.region.handle);
    live -= layers.back().bytes;
    layers.pop_back();
    fill();
  }
  result.after = pool.size();
  const PoolStats stats = pool.stats();
  result.efficiency = static_cast<double>(stats.payload_bytes) / static_cast<double>(stats.held_bytes);
  return result;
}

}  // namespace lamina::layers
