#include "base/tsc.h"

#include <unistd.h>
#include <x86intrin.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>
#include <string>
#include <thread>

namespace lamina {
namespace {

using std::chrono::nanoseconds;
using std::chrono::steady_clock;

struct Instant {
  steady_clock::time_point time;
  uint64_t ticks = 0;
};

// Both at once, as nearly as the least interrupted of several readings can tell.
Instant ReadBoth() {
  Instant best;
  auto least = nanoseconds::max();
  for (int i = 0; i < 50; ++i) {
    const auto before = steady_clock::now();
    const uint64_t ticks = __rdtsc();
    const nanoseconds took = steady_clock::now() - before;
    if (took < least) {
      least = took;
      best = {before + took / 2, ticks};
    }
  }
  return best;
}

uint32_t Measure() {
  // The kernel takes it off this list once it has found it unsteady.
  std::ifstream file("/sys/devices/system/clocksource/clocksource0/available_clocksource");
  std::string sources;
  std::getline(file, sources);
  if ((" " + sources + " ").find(" tsc ") == std::string::npos) return 0;
  const Instant first = ReadBoth();
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  const Instant last = ReadBoth();
  const auto took = std::chrono::duration_cast<nanoseconds>(last.time - first.time).count();
  const double khz = static_cast<double>(last.ticks - first.ticks) * 1e6 / static_cast<double>(took);
  return khz > 1 && khz < std::numeric_limits<uint32_t>::max() ? static_cast<uint32_t>(std::lround(khz)) : 0;
}

}  // namespace

uint32_t TscKhz() {
  static const uint32_t khz = Measure();
  return khz;
}

}  // namespace lamina
