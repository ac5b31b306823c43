#include "guest/protocol/clock_sync.h"

#include <functional>
#include <optional>
#include <utility>

#include "base/log.h"
#include "base/mutex.h"
#include "base/status.h"
#include "base/ttrpc/thread.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"

namespace lamina::guest {
namespace {

using std::chrono::nanoseconds;

constexpr nanoseconds kCallTimeout = std::chrono::seconds(5);
constexpr nanoseconds kGoodError = std::chrono::milliseconds(10);
constexpr int kMinReadings = 3, kMaxReadings = 20;
// Less is not worth a correction; the guest has its own bounds (guest/agent/guest_clock.h).
constexpr nanoseconds kTolerance = std::chrono::milliseconds(1);
constexpr size_t kThreadStackBytes = 64 * 1024;

// One call: what the guest's clock said, taken for the middle of the call.
absl::StatusOr<ClockReading> Ask(ttrpc::Caller& agent, const Clock& clock, nanoseconds correction) {
  agent::v1::AdjustClockRequest request;
  request.set_offset_nanos(correction.count());
  const int64_t before = UnixNanos(clock.Wall());
  ASSIGN_OR_RETURN(const auto answer, ttrpc::Call(agent, kAdjustClock, request, kCallTimeout));
  const int64_t after = UnixNanos(clock.Wall());
  if (after < before) return absl::AbortedError("the host's clock was set back meanwhile");
  // The guest may say anything: no sum of it may overflow.
  constexpr int64_t kFar = int64_t{1} << 61;
  if (answer.unix_nanos() < -kFar || answer.unix_nanos() > kFar) {
    return InvalidArgument("the guest's clock says {} ns since 1970", answer.unix_nanos());
  }
  const int64_t half = (after - before) / 2;
  return ClockReading{nanoseconds(before + half - answer.unix_nanos()), nanoseconds(half)};
}

absl::StatusOr<ClockReading> Measure(ttrpc::Caller& agent, const Clock& clock,
                                     const std::function<bool()>& given_up) {
  std::optional<ClockReading> best;
  for (int i = 0; i < kMaxReadings; ++i) {
    if (given_up()) return absl::CancelledError("no longer wanted");
    ASSIGN_OR_RETURN(const ClockReading reading, Ask(agent, clock, nanoseconds(0)));
    if (!best || reading.error < best->error) best = reading;
    if (i + 1 >= kMinReadings && best->error <= kGoodError) break;
  }
  return *best;
}

absl::StatusOr<ClockReading> Sync(ttrpc::Caller& agent, const Clock& clock,
                                  const std::function<bool()>& given_up) {
  ASSIGN_OR_RETURN(const ClockReading found, Measure(agent, clock, given_up));
  if (std::chrono::abs(found.offset) <= kTolerance + found.error) return found;
  RETURN_IF_ERROR(Ask(agent, clock, found.offset).status());
  return Measure(agent, clock, given_up);
}

}  // namespace

struct ClockKeeper::State {
  Mutex mutex;
  CondVar changed;
  bool stopping GUARDED_BY(mutex) = false;
  bool running GUARDED_BY(mutex) = false;
};

absl::StatusOr<ClockReading> SyncClock(ttrpc::Caller& agent, const Clock& clock) {
  return Sync(agent, clock, [] { return false; });
}

absl::StatusOr<std::unique_ptr<ClockKeeper>> ClockKeeper::Start(ttrpc::Caller& agent,
                                                                ClockKeeperOptions options) {
  auto state = std::make_shared<State>();
  MutexLock lock(state->mutex);
  RETURN_IF_ERROR(ttrpc::StartThread(kThreadStackBytes, [&agent, options, state] {
    Run(agent, options, *state);
    MutexLock done(state->mutex);
    state->running = false;
    state->changed.NotifyAll();
  }));
  state->running = true;
  return std::unique_ptr<ClockKeeper>(new ClockKeeper(state));
}

ClockKeeper::~ClockKeeper() {
  MutexLock lock(state_->mutex);
  state_->stopping = true;
  state_->changed.NotifyAll();
  while (state_->running) state_->changed.Wait(state_->mutex);
}

void ClockKeeper::Run(ttrpc::Caller& agent, const ClockKeeperOptions& options, State& state) {
  bool told = false;
  auto next = std::chrono::steady_clock::now() + options.first;
  const auto stopping = [&state] {
    MutexLock lock(state.mutex);
    return state.stopping;
  };
  for (;;) {
    {
      MutexLock lock(state.mutex);
      while (!state.stopping && state.changed.WaitUntil(state.mutex, next)) {
      }
      if (state.stopping) return;
    }
    const auto left = Sync(agent, Clock::Real(), stopping);
    if (left.status().code() == absl::StatusCode::kCancelled)
      return;  // whoever owns the connection closed it
    if (!left.ok() && !told) LogWarning("the guest's clock is not kept: {}", Message(left.status()));
    told = !left.ok();
    next = std::chrono::steady_clock::now() + options.interval;
  }
}

}  // namespace lamina::guest
