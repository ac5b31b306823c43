// A guest that a test plays. Thread-safe.
#pragma once

#include <algorithm>

#include "base/mutex.h"
#include "base/status.h"
#include "vmm/balloon.h"

namespace lamina::vmm {

class FakeGuest {
 public:
  uint64_t base_bytes = 0, used_bytes = 0;
  int64_t stats_unix_seconds = 0;
  uint64_t step_bytes = UINT64_MAX;  // how far it comes with each look
  uint64_t stops_at_bytes = 0;       // it does not go below this
  bool gone = false;                 // QEMU does not answer
  uint64_t target_bytes = 0, actual_bytes = 0;

  explicit FakeGuest(uint64_t base) : base_bytes(base), target_bytes(base), actual_bytes(base) {}

  Mutex mutex;
};

class FakeBalloon : public Balloon {
 public:
  explicit FakeBalloon(FakeGuest& guest) : guest_(guest) {}
  absl::StatusOr<BalloonSample> Sample() override {
    MutexLock lock(guest_.mutex);
    if (guest_.gone) return absl::UnavailableError("QMP: QEMU is gone");
    if (guest_.target_bytes > guest_.actual_bytes) {
      guest_.actual_bytes += std::min(guest_.step_bytes, guest_.target_bytes - guest_.actual_bytes);
    } else {
      const uint64_t wanted = std::max(guest_.target_bytes, guest_.stops_at_bytes);
      if (wanted < guest_.actual_bytes)
        guest_.actual_bytes -= std::min(guest_.step_bytes, guest_.actual_bytes - wanted);
    }
    BalloonSample sample;
    sample.base_bytes = guest_.base_bytes;
    sample.actual_bytes = guest_.actual_bytes;
    sample.used_bytes = guest_.used_bytes;
    sample.stats_unix_seconds = guest_.stats_unix_seconds;
    return sample;
  }
  absl::Status SetTarget(uint64_t bytes) override {
    MutexLock lock(guest_.mutex);
    if (guest_.gone) return absl::UnavailableError("QMP: QEMU is gone");
    guest_.target_bytes = bytes;
    return absl::OkStatus();
  }

 private:
  FakeGuest& guest_;
};

}  // namespace lamina::vmm
