#include "base/clock.h"

#include "base/file_system.h"

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

std::string BootId() {
  std::string id = FileSystem::Real().Read("/proc/sys/kernel/random/boot_id", 128).value_or("");
  while (!id.empty() && id.back() == '\n') id.pop_back();
  return id;
}

}  // namespace lamina
