// The guest's CLOCK_REALTIME, which the host corrects: by a step before any container runs, by slewing after
// that, so that a container sees neither a jump nor the same second twice.
#pragma once

#include <chrono>
#include <memory>

#include "absl/status/status.h"
#include "base/mutex.h"

namespace lamina::guest {

struct ClockChange {
  enum class Way { kNone, kStep, kSlew };
  Way way = Way::kNone;
  // kSlew: the kernel's tick (adjtimex: microseconds in a hundredth of a second, 10,000 when nothing is to be
  // mended), and how long it stays so.
  long tick = 10'000;
  std::chrono::nanoseconds lasts{0};
};

// What mends a clock to which `offset` is to be added. Steps: over 1 ms while no container has been made, and
// over 2 s always: so much is no drift but a machine that stood still, or a host whose own clock was set.
// Slews: over 5 ms, by 2%, 50 s for a second.
ClockChange PlanClock(std::chrono::nanoseconds offset, bool containers_made);

// Thread-safe.
class GuestClock {
 public:
  GuestClock();

  // From now on containers see the clock.
  void ContainersMade();

  // Mends the clock to which `offset` is to be added. A slew goes on after the return; as long as it does,
  // other corrections are left out: who asked will find out when it next compares. InvalidArgument for a time
  // before 1970.
  absl::Status Adjust(std::chrono::nanoseconds offset);

 private:
  struct State {
    Mutex mutex;
    bool containers_made GUARDED_BY(mutex) = false;
    bool slewing GUARDED_BY(mutex) = false;
  };
  const std::shared_ptr<State> state_;  // the slewing thread may outlive the object
};

}  // namespace lamina::guest
