// A VM's virtio-balloon, over a control socket that is laminad's alone (balloon.sock beside the shim's).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace lamina::vmm {

inline std::string BalloonSocket(const std::string& runtime_dir) { return runtime_dir + "/balloon.sock"; }

// How often QEMU asks the guest for its statistics.
inline constexpr int kBalloonStatsSeconds = 5;

struct BalloonSample {
  uint64_t base_bytes = 0;    // the guest's memory with an empty balloon, without what was hotplugged
  uint64_t actual_bytes = 0;  // less what the balloon holds: QEMU's own count
  // What the guest says of itself, believed only as far as it costs nobody else: its memory, hotplugged and
  // set aside by its kernel too, minus what it could use at once and what the balloon holds. 0: it has said
  // nothing.
  uint64_t used_bytes = 0;
  int64_t stats_unix_seconds = 0;  // when it said so; 0: never

  uint64_t inflated_bytes() const { return base_bytes > actual_bytes ? base_bytes - actual_bytes : 0; }
};

// The seam. Thread-safe.
class Balloon {
 public:
  virtual ~Balloon() = default;
  // Unavailable when QEMU is gone, DeadlineExceeded when it does not answer.
  virtual absl::StatusOr<BalloonSample> Sample() = 0;
  // Asks the guest to come to `bytes` of actual memory; it comes when it comes.
  virtual absl::Status SetTarget(uint64_t bytes) = 0;
};

// Connects, and lets QEMU ask for statistics. Unavailable, DeadlineExceeded: no QEMU answers there.
absl::StatusOr<std::unique_ptr<Balloon>> ConnectBalloon(const std::string& runtime_dir,
                                                        std::chrono::milliseconds timeout);

// A guest's statistics as QEMU's "guest-stats" has them. Pure; InvalidArgument for anything else.
absl::Status ReadGuestStats(const std::string& json, BalloonSample& sample);

}  // namespace lamina::vmm
