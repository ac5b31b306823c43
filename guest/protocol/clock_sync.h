// The host's half of the guest's clock: measures how far it is off, has it mended, and looks again now and
// then: a guest's clock drifts, by the error with which its kernel measured the CPU's.
#pragma once

#include <chrono>
#include <memory>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/ttrpc/method.h"

namespace lamina::guest {

struct ClockReading {
  std::chrono::nanoseconds offset{0};  // to be added to the guest's clock
  std::chrono::nanoseconds error{0};   // the offset is known to this, either way: half of the round trip
};

// Measures, has the guest mend what it finds (a step before the first container, a slew after it, which goes
// on after the return), and answers what was left after a step. Takes a few milliseconds; a slow guest is
// asked up to 20 times for an answer that is good to 10 ms. Errors are the calls'; each has 5 s.
absl::StatusOr<ClockReading> SyncClock(ttrpc::Caller& agent, const Clock& clock = Clock::Real());

struct ClockKeeperOptions {
  std::chrono::milliseconds first{2000};  // the kernel measures once more soon after the boot
  std::chrono::milliseconds interval{30'000};
};

// Keeps the guest's clock near the host's for as long as it lives, or until a call is answered Cancelled: one
// thread. What fails else is logged, once until it works again, and tried at the next turn.
class ClockKeeper {
 public:
  // `agent` outlives the keeper. ResourceExhausted when there is no thread to be had.
  static absl::StatusOr<std::unique_ptr<ClockKeeper>> Start(ttrpc::Caller& agent,
                                                            ClockKeeperOptions options = {});
  // Waits for the call under way, if there is one: 5 s at most, less when the connection is closed first.
  ~ClockKeeper();

 private:
  struct State;
  explicit ClockKeeper(std::shared_ptr<State> state) : state_(std::move(state)) {}
  static void Run(ttrpc::Caller& agent, const ClockKeeperOptions& options, State& state);
  const std::shared_ptr<State> state_;
};

}  // namespace lamina::guest
