// A VM's virtio-balloon.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "vmm/qmp_client.h"

namespace lamina::vmm {

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
  // Unavailable when the VM is gone, DeadlineExceeded when it does not answer.
  virtual absl::StatusOr<BalloonSample> Sample() = 0;
  // Asks the guest to come to `bytes` of actual memory; it comes when it comes.
  virtual absl::Status SetTarget(uint64_t bytes) = 0;
};

// Over the VM's control socket `qmp`, which must outlive it. A call takes two seconds at most.
class QmpBalloon : public Balloon {
 public:
  // `base_bytes`: the VM's memory without virtio-mem.
  QmpBalloon(QmpClient& qmp, uint64_t base_bytes) : qmp_(qmp), base_bytes_(base_bytes) {}

  // The first has QEMU ask the guest for its statistics from then on.
  absl::StatusOr<BalloonSample> Sample() override;
  // InvalidArgument: more than `base_bytes`, or nothing.
  absl::Status SetTarget(uint64_t bytes) override;

 private:
  QmpClient& qmp_;
  const uint64_t base_bytes_;
  std::atomic<bool> asks_{false};
};

// A guest's statistics as QEMU's "guest-stats" has them. Pure; InvalidArgument for anything else.
absl::Status ReadGuestStats(const std::string& json, BalloonSample& sample);

}  // namespace lamina::vmm
