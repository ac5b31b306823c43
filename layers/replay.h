// A trace of layers run against an allocator, without any file or VM: what would fit, where, how tightly.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "layers/pool_allocator.h"

namespace lamina::layers {

struct ReplayOptions {
  Policy policy = Policy::kDense;
  uint64_t device_bytes = 4ULL << 30;  // of each device; what the policy's allocator accepts
  size_t devices = 1;                  // the first one with room gets the region
};

struct ReplaySummary {
  uint64_t payload_bytes = 0, held_bytes = 0, capacity_bytes = 0;
  size_t live = 0, refused = 0;
  double utilisation = 0;  // payload / capacity
  bool pristine = false;   // all free, merged into one on each device
};

// A device is what the policy's allocator takes: classic one of its seven classes (its root region; 4 GiB in
// hcsshim, 1 GiB here is a pool where 2 GiB never find room), dense any multiple of 2 MiB. Devices are
// separate pools, tried in order.
//
// Lines of `trace`: "alloc NAME SIZE" (SIZE in bytes or with KiB, MiB, GiB), "free NAME"; empty lines and
// lines that begin with # are passed over. A second "free NAME" releases by the first one's handle, which is
// stale. `emit` gets one JSON object for each line, without a newline:
//   {"line":1,"op":"alloc","name":"a","result":"ok","device":0,"offset":0,"held":4194304}
// "result" is ok, not-enough-space, invalid-size or not-allocated; the last three keys come with ok alone.
// The last object is {"summary":{"payload":…,"held":…,"capacity":…,"utilisation":…,"live":…,"refused":…,
// "pristine":…}}. InvalidArgument: options that the policy refuses (nothing emitted), or a line that is not
// one of these (an "alloc" of a name that is live included) with its number and text (the lines before it are
// emitted, no summary). Not thread-safe in `emit`.
absl::StatusOr<ReplaySummary> Replay(std::string_view trace, const ReplayOptions& options,
                                     const std::function<void(const std::string& json)>& emit);

}  // namespace lamina::layers
