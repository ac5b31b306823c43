#include "vmm/balloon.h"

#include <gtest/gtest.h>

#include <utility>

#include "base/ttrpc/client.h"
#include "base/units.h"
#include "proto/balloon.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"
#include "vmm/balloon_door.h"
#include "vmm/fake_balloon.h"

namespace lamina::vmm {
namespace {

using lamina::testing::HasStatus;

BalloonSample Inflated() {
  BalloonSample sample;
  sample.base_bytes = 512 * kMiB;
  sample.actual_bytes = 412 * kMiB;
  return sample;
}

TEST(GuestStats, TheBalloonsPagesAreNotInUse) {
  BalloonSample sample = Inflated();
  ASSERT_OK(ReadGuestStats(
      R"({"stats":{"stat-total-memory":500000000,"stat-available-memory":300000000,"stat-free-memory":1},"last-update":1700000000})",
      sample));
  EXPECT_EQ(sample.used_bytes, 200'000'000 - 100 * kMiB + (512 * kMiB - 500'000'000));
  EXPECT_EQ(sample.stats_unix_seconds, 1'700'000'000);
}

TEST(GuestStats, WhatTheGuestHasNotSaidIsNotKnown) {
  for (const char* text :
       {R"({"stats":{"stat-total-memory":18446744073709551615,"stat-available-memory":1},"last-update":5})",
        R"({"stats":{"stat-total-memory":5},"last-update":5})", R"({"stats":{},"last-update":0})"}) {
    BalloonSample sample = Inflated();
    ASSERT_OK(ReadGuestStats(text, sample)) << text;
    EXPECT_EQ(sample.stats_unix_seconds, 0) << text;
  }
}

TEST(GuestStats, WithMemoryPluggedWhatIsSetAsideIsGuessedHigh) {
  BalloonSample sample = Inflated();
  ASSERT_OK(ReadGuestStats(
      R"({"stats":{"stat-total-memory":1000000000,"stat-available-memory":700000000},"last-update":1})",
      sample));
  EXPECT_EQ(sample.used_bytes, 300'000'000 - 100 * kMiB + 32 * kMiB + 48 * kMiB);
}

TEST(GuestStats, AGuestThatLiesGivesLess) {
  BalloonSample sample = Inflated();
  ASSERT_OK(ReadGuestStats(
      R"({"stats":{"stat-total-memory":1,"stat-available-memory":9000000000000000000},"last-update":7})",
      sample));
  EXPECT_EQ(sample.used_bytes, 512 * kMiB - 1);
}

TEST(GuestStats, AnythingElseIsAnError) {
  for (const char* text :
       {"", "[]", "{}", R"({"stats":5,"last-update":1})", R"({"stats":{},"last-update":"x"})"}) {
    BalloonSample sample;
    EXPECT_THAT(ReadGuestStats(text, sample), HasStatus(absl::StatusCode::kInvalidArgument, "guest-stats"))
        << text;
  }
}

TEST(BalloonDoor, WhatIsAskedAtTheDoorReachesTheBalloon) {
  const lamina::testing::TempDir dir;
  FakeGuest guest(512 * kMiB);
  guest.used_bytes = 100 * kMiB;
  guest.stats_unix_seconds = 1'700'000'000;
  FakeBalloon fake(guest);
  {
    const auto door = BalloonDoor::Open(dir.path(), fake);
    ASSERT_OK(door);
    const auto balloon = ConnectBalloon(dir.path(), std::chrono::seconds(10));
    ASSERT_OK(balloon);
    ASSERT_OK((*balloon)->SetTarget(412 * kMiB));
    const auto sample = (*balloon)->Sample();
    ASSERT_OK(sample);
    EXPECT_EQ(sample->base_bytes, 512 * kMiB);
    EXPECT_EQ(sample->actual_bytes, 412 * kMiB);
    EXPECT_EQ(sample->used_bytes, 100 * kMiB);
    EXPECT_EQ(sample->stats_unix_seconds, 1'700'000'000);
    {
      MutexLock lock(guest.mutex);
      guest.gone = true;
    }
    EXPECT_THAT((*balloon)->Sample(), HasStatus(absl::StatusCode::kUnavailable, "QEMU is gone"));
  }
  EXPECT_THAT(ConnectBalloon(dir.path(), std::chrono::seconds(1)),
              HasStatus(absl::StatusCode::kUnavailable, "/balloon.sock"));
}

// There is nothing else that laminad, or who has its rights, can ask there: QEMU's own commands are the
// shim's.
TEST(BalloonDoor, TheDoorLeadsToTheBalloonOnly) {
  const lamina::testing::TempDir dir;
  FakeGuest guest(512 * kMiB);
  FakeBalloon fake(guest);
  const auto door = BalloonDoor::Open(dir.path(), fake);
  ASSERT_OK(door);
  const auto client = ttrpc::Client::Dial(BalloonSocket(dir.path()), "the shim");
  ASSERT_OK(client);
  for (const auto& [service, method] :
       {std::pair{"containerd.task.v2.Task", "Kill"}, std::pair{"lamina.shim.v1.Balloon", "Execute"}}) {
    shim::v1::SampleRequest request;
    EXPECT_THAT((*client)->Call(service, method, request, nullptr, std::chrono::seconds(10)),
                HasStatus(absl::StatusCode::kUnimplemented, service));
  }
}

TEST(BalloonDoor, WithoutAShimItIsUnavailable) {
  EXPECT_THAT(ConnectBalloon("/no/such/dir", std::chrono::seconds(1)),
              HasStatus(absl::StatusCode::kUnavailable, "/no/such/dir/balloon.sock"));
}

}  // namespace
}  // namespace lamina::vmm
