#include "guest/protocol/clock_sync.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "base/ttrpc/fake_caller.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

using agent::v1::AdjustClockRequest;
using agent::v1::AdjustClockResponse;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using testing::HasStatus;

// A guest whose clock is late by `late`, behind calls that take `way` there and `back` again.
class FakeGuest {
 public:
  FakeGuest() {
    caller.Handle(kAdjustClock,
                  [this](const AdjustClockRequest& request) -> absl::StatusOr<AdjustClockResponse> {
                    const nanoseconds way = slow_calls-- > 0 ? slow : fast;
                    clock.Advance(way);
                    late -= nanoseconds(request.offset_nanos());
                    AdjustClockResponse answer;
                    answer.set_unix_nanos(UnixNanos(clock.Wall()) - late.count());
                    clock.Advance(way);
                    return answer;
                  });
  }
  ttrpc::FakeCaller caller;
  FakeClock clock;
  nanoseconds late{0}, fast{100'000}, slow{0};
  int slow_calls = 0;
};

TEST(SyncClock, AGuestThatIsLateByItsBootIsMended) {
  for (const nanoseconds late : {nanoseconds(2'900'000'000), nanoseconds(-86'400'000'000'000)}) {
    FakeGuest guest;
    guest.late = late;
    const auto left = SyncClock(guest.caller, guest.clock);
    ASSERT_OK(left);
    EXPECT_LT(std::chrono::abs(guest.late), milliseconds(1));
    EXPECT_LT(std::chrono::abs(left->offset), milliseconds(1));
  }
}

TEST(SyncClock, AClockThatIsRightIsLeftAlone) {
  FakeGuest guest;
  guest.late = milliseconds(1);
  ASSERT_OK(SyncClock(guest.caller, guest.clock));
  EXPECT_EQ(guest.late, milliseconds(1));
  EXPECT_EQ(guest.caller.Count("AdjustClock"), 3);
}

// A call that waits in the port until the agent is there says next to nothing about the clock.
TEST(SyncClock, TheQuickestAnswerCounts) {
  FakeGuest guest;
  guest.slow = milliseconds(1500);
  guest.slow_calls = 4;
  guest.late = milliseconds(500);
  const auto left = SyncClock(guest.caller, guest.clock);
  ASSERT_OK(left);
  EXPECT_LT(std::chrono::abs(guest.late), milliseconds(1));
  EXPECT_LT(left->error, milliseconds(1));
}

TEST(SyncClock, AGuestThatIsNeverQuickIsNotAskedForEver) {
  FakeGuest guest;
  guest.fast = milliseconds(40);
  const auto left = SyncClock(guest.caller, guest.clock);
  ASSERT_OK(left);
  EXPECT_EQ(left->error, milliseconds(40));
  EXPECT_EQ(guest.caller.Count("AdjustClock"), 20);
}

TEST(SyncClock, NonsenseIsRefused) {
  ttrpc::FakeCaller caller;
  for (const int64_t said : {INT64_MAX, INT64_MIN}) {
    caller.Handle(kAdjustClock, [&](const AdjustClockRequest&) -> absl::StatusOr<AdjustClockResponse> {
      AdjustClockResponse answer;
      answer.set_unix_nanos(said);
      return answer;
    });
    EXPECT_THAT(SyncClock(caller), HasStatus(absl::StatusCode::kInvalidArgument, "since 1970"));
  }
}

TEST(SyncClock, ItsErrorsAreTheCalls) {
  FakeGuest guest;
  guest.late = milliseconds(100);
  for (int call = 0; call < 7; ++call) {
    FakeGuest failing;
    failing.late = milliseconds(100);
    failing.caller.FailAt(call);
    EXPECT_THAT(SyncClock(failing.caller, failing.clock),
                HasStatus(absl::StatusCode::kUnavailable, "injected"));
  }
  EXPECT_OK(SyncClock(guest.caller, guest.clock));
}

TEST(ClockKeeper, LooksAgainAndEndsAtOnce) {
  ttrpc::FakeCaller caller;
  std::atomic<int64_t> late{300'000'000};
  std::promise<void> mended_twice;
  int corrections = 0;
  caller.Handle(kAdjustClock, [&](const AdjustClockRequest& request) -> absl::StatusOr<AdjustClockResponse> {
    late -= request.offset_nanos();
    AdjustClockResponse answer;
    answer.set_unix_nanos(UnixNanos(Clock::Real().Wall()) - late);
    if (request.offset_nanos() != 0) {
      late += 300'000'000;  // and it drifts again
      if (++corrections == 2) mended_twice.set_value();
    }
    return answer;
  });
  const auto keeper = ClockKeeper::Start(caller, {.first = milliseconds(1), .interval = milliseconds(1)});
  ASSERT_OK(keeper);
  mended_twice.get_future().get();
}

TEST(ClockKeeper, EndsWithItsConnection) {
  ttrpc::FakeCaller caller;
  std::promise<void> asked;
  caller.Handle(kAdjustClock, [&](const AdjustClockRequest&) -> absl::StatusOr<AdjustClockResponse> {
    asked.set_value();  // a second call would throw
    return absl::CancelledError("closed");
  });
  const auto keeper = ClockKeeper::Start(caller, {.first = milliseconds(1), .interval = milliseconds(1)});
  ASSERT_OK(keeper);
  asked.get_future().get();
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_EQ(caller.Count("AdjustClock"), 1);
}

TEST(ClockKeeper, ItsEndDoesNotWaitForTheNextTurn) {
  ttrpc::FakeCaller caller;
  const auto begin = std::chrono::steady_clock::now();
  { ASSERT_OK(ClockKeeper::Start(caller, {.first = std::chrono::hours(1)})); }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::minutes(1));
  EXPECT_EQ(caller.Count("AdjustClock"), 0);
}

}  // namespace
}  // namespace lamina::guest
