#include "guest/agent/guest_clock.h"

#include <sys/timex.h>
#include <time.h>

#include <cerrno>
#include <cstdlib>
#include <thread>

#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "base/ttrpc/thread.h"

namespace lamina::guest {
namespace {

using std::chrono::nanoseconds;

constexpr nanoseconds kStepTolerance = std::chrono::milliseconds(1);
constexpr nanoseconds kSlewTolerance = std::chrono::milliseconds(5);
constexpr nanoseconds kMaxSlew = std::chrono::seconds(2);
constexpr long kTick = 10'000, kSlewTicks = 200;
constexpr size_t kThreadStackBytes = 64 * 1024;

absl::Status SetTick(long tick) {
  timex change{};
  change.modes = ADJ_TICK;
  change.tick = tick;
  if (adjtimex(&change) < 0) return ErrnoStatus(errno, fmt::format("set the clock's tick to {} us", tick));
  return absl::OkStatus();
}

absl::Status Step(nanoseconds offset) {
  const int64_t target = UnixNanos(Clock::Real().Wall()) + offset.count();
  if (target < 0) return InvalidArgument("a clock that is {} ns late would be before 1970", offset.count());
  const timespec time{static_cast<time_t>(target / 1'000'000'000), static_cast<long>(target % 1'000'000'000)};
  if (clock_settime(CLOCK_REALTIME, &time) != 0) return ErrnoStatus(errno, "set the clock");
  return absl::OkStatus();
}

}  // namespace

ClockChange PlanClock(nanoseconds offset, bool containers_made) {
  const nanoseconds size = std::chrono::abs(offset);
  if (size > kMaxSlew || (!containers_made && size > kStepTolerance)) return {ClockChange::Way::kStep};
  if (!containers_made || size <= kSlewTolerance) return {};
  return {ClockChange::Way::kSlew, offset > nanoseconds(0) ? kTick + kSlewTicks : kTick - kSlewTicks,
          size * (kTick / kSlewTicks)};
}

GuestClock::GuestClock() : state_(std::make_shared<State>()) {}

void GuestClock::ContainersMade() {
  MutexLock lock(state_->mutex);
  state_->containers_made = true;
}

absl::Status GuestClock::Adjust(nanoseconds offset) {
  MutexLock lock(state_->mutex);
  if (state_->slewing) return absl::OkStatus();
  const ClockChange change = PlanClock(offset, state_->containers_made);
  switch (change.way) {
    case ClockChange::Way::kNone:
      return absl::OkStatus();
    case ClockChange::Way::kStep:
      if (state_->containers_made) LogWarning("the clock is {} ns off: it is stepped", offset.count());
      return Step(offset);
    case ClockChange::Way::kSlew:
      break;
  }
  RETURN_IF_ERROR(ttrpc::StartThread(kThreadStackBytes, [state = state_, lasts = change.lasts] {
    std::this_thread::sleep_for(lasts);
    MutexLock done(state->mutex);
    const absl::Status status = SetTick(kTick);
    if (!status.ok()) LogError("{}", Message(status));
    state->slewing = false;
  }));
  // The thread cannot undo it too early: it waits for the mutex.
  state_->slewing = true;
  return SetTick(change.tick);
}

}  // namespace lamina::guest
