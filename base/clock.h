#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace lamina {

using MonotonicTime = std::chrono::steady_clock::time_point;
using WallTime = std::chrono::system_clock::time_point;

// The seam for time. The real clock is thread-safe and lives for ever.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual MonotonicTime Now() const = 0;
  virtual WallTime Wall() const = 0;
  static const Clock& Real();
};

// A clock that stands still until a test moves it. Not thread-safe.
class FakeClock : public Clock {
 public:
  MonotonicTime Now() const override { return now_; }
  WallTime Wall() const override { return wall_; }
  void Advance(std::chrono::nanoseconds by) {
    now_ += by;
    wall_ += std::chrono::duration_cast<WallTime::duration>(by);
  }

 private:
  MonotonicTime now_{std::chrono::seconds(1)};
  WallTime wall_{std::chrono::seconds(1'700'000'000)};
};

// Nanoseconds since 1970 (UTC).
inline int64_t UnixNanos(WallTime time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

// The kernel's name for the time since the host was booted: what was measured or running then is of another
// world. Empty when the kernel does not tell.
std::string BootId();

}  // namespace lamina
