#include "base/clock.h"

namespace lamina {

const Clock& Clock::Real() {
  class RealClock : public Clock {
   public:
    MonotonicTime Now() const override { return std::chrono::steady_clock::now(); }
    WallTime Wall() const override { return std::chrono::system_clock::now(); }
  };
  static const RealClock clock;
  return clock;
}

}  // namespace lamina
