#include "node/side_by_side.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <memory>
#include <thread>

#include "tests/testing/status_matchers.h"

namespace lamina::node {
namespace {

using lamina::testing::HasStatus;
using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(SideBySide, RunsAllOnNoMoreThreadsThanItMay) {
  SideBySide threads(4);
  std::atomic<int> running{0}, most{0}, done{0};
  std::latch four(4);
  std::vector<SideBySide::Job> jobs;
  for (int i = 0; i < 40; ++i) {
    jobs.emplace_back([&, i] {
      const int now = ++running;
      for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
      }
      if (i < 4) four.arrive_and_wait();  // it goes on only if four run at once
      --running;
      ++done;
    });
  }
  ASSERT_OK(threads.Run(std::move(jobs), seconds(60)));
  EXPECT_EQ(done, 40);
  EXPECT_EQ(most, 4);
}

TEST(SideBySide, OneThatHangsDelaysNobody) {
  struct State {
    std::latch release{1};
    std::atomic<int> hanging{0}, done{0}, late{0};
  };
  const auto state = std::make_shared<State>();
  const auto hang = [state] {
    ++state->hanging;
    state->release.wait();
  };
  {
    SideBySide threads(2);
    std::vector<SideBySide::Job> jobs = {hang};
    for (int i = 0; i < 10; ++i) jobs.emplace_back([state] { ++state->done; });
    ASSERT_OK(threads.Run(std::move(jobs), seconds(1)));
    EXPECT_EQ(state->done, 10);
    while (state->hanging < 2) ASSERT_OK(threads.Run({hang}, milliseconds(1)));
    // Both threads hang now: what is not begun in time is dropped.
    ASSERT_OK(threads.Run({[state] { ++state->late; }}, milliseconds(50)));
    state->release.count_down();
    ASSERT_OK(threads.Run({[state] { ++state->done; }}, seconds(60)));
    EXPECT_EQ(state->done, 11);
  }
  EXPECT_EQ(state->late, 0);
}

TEST(SideBySide, ItsEndWaitsForWhatIsUnderWay) {
  std::atomic<bool> begun{false}, ended{false};
  const auto release = std::make_shared<std::latch>(1);
  {
    SideBySide threads(1);
    while (!begun) {
      ASSERT_OK(threads.Run({[&, release] {
                              begun = true;
                              release->wait();
                              ended = true;
                            }},
                            milliseconds(1)));
    }
    EXPECT_FALSE(ended);
    release->count_down();
  }
  EXPECT_TRUE(ended);
}

// The kernel gives no thread: the call fails, the process goes on.
TEST(SideBySide, WithoutThreadsItSaysSo) {
  int given = 0;
  SideBySide none(4, [](const std::function<void()>&) {
    return absl::ResourceExhaustedError("start a thread: error 11");
  });
  bool ran = false;
  EXPECT_THAT(none.Run({[&] { ran = true; }}, seconds(60)),
              HasStatus(absl::StatusCode::kResourceExhausted, "start a thread"));
  EXPECT_FALSE(ran);
  // One is enough for all.
  std::vector<std::jthread> made;
  SideBySide one(4, [&](std::function<void()> body) {
    if (given++ > 0) return absl::ResourceExhaustedError("start a thread: error 11");
    made.emplace_back(std::move(body));
    return absl::OkStatus();
  });
  std::atomic<int> done{0};
  ASSERT_OK(one.Run({[&] { ++done; }, [&] { ++done; }, [&] { ++done; }}, seconds(60)));
  EXPECT_EQ(done, 3);
}

}  // namespace
}  // namespace lamina::node
