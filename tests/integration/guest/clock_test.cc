#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "guest/protocol/clock_sync.h"
#include "tests/integration/guest/pod.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

// What the guest's clock is late by; the best of some questions.
ClockReading Late(GuestVm& vm) {
  ClockReading best{nanoseconds(0), std::chrono::hours(1)};
  for (int i = 0; i < 20 && best.error > milliseconds(5); ++i) {
    const int64_t before = UnixNanos(Clock::Real().Wall());
    const auto answer = vm.Call(kAdjustClock, agent::v1::AdjustClockRequest());
    const int64_t after = UnixNanos(Clock::Real().Wall());
    EXPECT_OK(answer);
    if (!answer.ok()) break;
    const nanoseconds error((after - before) / 2);
    if (error < best.error) best = {nanoseconds(before + (after - before) / 2 - answer->unix_nanos()), error};
  }
  return best;
}

void Print(const char* what, const ClockReading& late) {
  printf("%s: %.3f ms late, known to %.3f ms\n", what, static_cast<double>(late.offset.count()) / 1e6,
         static_cast<double>(late.error.count()) / 1e6);
}

// Holds every CPU of the host until it goes.
class BusyHost {
 public:
  BusyHost() {
    for (unsigned i = 0; i < 2 * std::max(1U, std::thread::hardware_concurrency()); ++i) {
      threads_.emplace_back([this] {
        while (!over_.load(std::memory_order_relaxed)) {
        }
      });
    }
  }
  ~BusyHost() {
    over_ = true;
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  std::atomic<bool> over_{false};
  std::vector<std::thread> threads_;
};

TEST(Clock, IsTheHostsBeforeTheFirstContainerRuns) {
  VmOptions options;
  options.devices = false;
  const auto vm = GuestVm::Boot(options);
  ASSERT_OK(vm);
  agent::v1::ConfigureSandboxRequest configure;
  configure.set_sandbox_id("pod-1");
  ASSERT_OK((*vm)->Call(kConfigureSandbox, configure));
  const ClockReading late = Late(**vm);
  Print("after the start", late);
  EXPECT_LT(std::chrono::abs(late.offset), milliseconds(50));
}

// A container sees neither a jump nor, for long, another time than the host's.
TEST(Clock, IsSlewedToTheHostsUnderAContainerBesideABusyHost) {
  GuestVm& vm = GuestVm::Shared();
  ContainerOptions busy;
  busy.args = {"/bin/sh", "-c", "while true; do :; done"};
  TestContainer container(vm, busy);
  ASSERT_OK(container.created());
  ASSERT_OK(container.Start());
  const BusyHost host;
  ASSERT_OK(SyncClock(vm.client()));

  agent::v1::AdjustClockRequest away;
  away.set_offset_nanos(nanoseconds(milliseconds(-300)).count());
  ASSERT_OK(vm.Call(kAdjustClock, away));
  const ClockReading at_once = Late(vm);
  Print("pushed 300 ms back, at once", at_once);
  EXPECT_LT(at_once.offset, milliseconds(200) + at_once.error);
  const auto reaches = [&](auto enough) {
    const auto deadline = steady_clock::now() + seconds(120);
    nanoseconds most{0};
    for (;;) {
      const ClockReading late = Late(vm);
      most = std::max(most, nanoseconds(std::chrono::abs(late.offset)) - late.error);
      EXPECT_LT(most, seconds(1));
      if (enough(late) || steady_clock::now() > deadline) return late;
      std::this_thread::sleep_for(milliseconds(200));
    }
  };
  const ClockReading pushed = reaches([](const ClockReading& r) { return r.offset > milliseconds(250); });
  Print("pushed 300 ms back, in the end", pushed);
  EXPECT_GT(pushed.offset, milliseconds(250));

  const auto keeper =
      ClockKeeper::Start(vm.client(), {.first = milliseconds(500), .interval = milliseconds(2000)});
  ASSERT_OK(keeper);
  const ClockReading kept =
      reaches([](const ClockReading& r) { return std::chrono::abs(r.offset) < milliseconds(30); });
  Print("kept", kept);
  EXPECT_LT(std::chrono::abs(kept.offset), milliseconds(30) + kept.error);
}

}  // namespace
}  // namespace lamina::guest
