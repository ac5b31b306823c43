// VMs whose QEMU hangs: stopped, or in the kernel. Nobody else may wait for them.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <thread>

#include "base/unique_fd.h"
#include "base/units.h"
#include "node/engine.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"
#include "tests/unit/node/fake_host.h"
#include "vmm/balloon_door.h"

namespace lamina::node {
namespace {

using lamina::testing::HasStatus;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr int64_t kShim = 100;
constexpr uint64_t kGuest = 1 * kGiB, kUsed = 128 * kMiB;
// laminad's time for an answer is 2.3 s; the rest is a loaded machine's.
constexpr milliseconds kOneTimeout{4500};

// A pod's shim, whose VM answers as long as it is not stopped. Its guest gives all that it is asked for.
class Shim : public vmm::Balloon {
 public:
  Shim(const std::string& runtime_dir, bool stopped) : stopped_(stopped) {
    std::filesystem::create_directories(runtime_dir);
    auto door = vmm::BalloonDoor::Open(runtime_dir, *this);
    EXPECT_OK(door);
    if (door.ok()) door_ = std::move(*door);
  }
  ~Shim() override {
    {
      MutexLock lock(mutex_);
      ended_ = true;
      changed_.NotifyAll();
    }
    door_.reset();
  }
  void Stop() {
    MutexLock lock(mutex_);
    stopped_ = true;
  }
  uint64_t actual_bytes() {
    MutexLock lock(guest_.mutex);
    return guest_.actual_bytes;
  }
  absl::StatusOr<vmm::BalloonSample> Sample() override {
    AwaitVm();
    {
      MutexLock lock(guest_.mutex);
      guest_.used_bytes = kUsed;
      guest_.stats_unix_seconds = UnixNanos(Clock::Real().Wall()) / 1'000'000'000;
    }
    return balloon_.Sample();
  }
  absl::Status SetTarget(uint64_t bytes) override {
    AwaitVm();
    return balloon_.SetTarget(bytes);
  }

 private:
  void AwaitVm() {
    MutexLock lock(mutex_);
    while (stopped_ && !ended_) changed_.Wait(mutex_);
  }

  vmm::FakeGuest guest_{kGuest};
  vmm::FakeBalloon balloon_{guest_};
  Mutex mutex_;
  CondVar changed_;
  bool stopped_ GUARDED_BY(mutex_), ended_ GUARDED_BY(mutex_) = false;
  std::unique_ptr<vmm::BalloonDoor> door_;
};

// Processes as a test has them, balloons as they are.
class SocketHost : public FakeHost {
 public:
  absl::StatusOr<std::unique_ptr<vmm::Balloon>> OpenBalloon(const std::string& runtime_dir) override {
    return Host::Real().OpenBalloon(runtime_dir);
  }
  void Nap(milliseconds time) override { poll(nullptr, 0, static_cast<int>(time.count())); }
};

class SilentVmsTest : public ::testing::Test {
 protected:
  static constexpr int kSilent = 20;
  void SetUp() override {
    config_.paths.state_dir = dir_ / "state";
    config_.memory.capacity_bytes = (kSilent + 2) * kGuest;
    config_.memory.reserve_bytes = 0;
    config_.memory.min_available_bytes = 0;
    config_.memory.balloon_floor_bytes = 128 * kMiB;
    config_.memory.balloon_margin_bytes = 64 * kMiB;
    host_.Start(kShim, 1);
    auto node = Engine::Open(config_, FileSystem::Real(), host_, Clock::Real());
    ASSERT_OK(node);
    node_ = std::move(*node);
    ASSERT_OK(node_->Reconcile());
  }
  absl::StatusOr<uint64_t> Claim(const std::string& id, uint64_t bytes,
                                 std::optional<MonotonicTime> deadline = {}) {
    laminad::v1::ClaimRequest request;
    request.set_sandbox_id(id);
    request.set_bytes(bytes);
    request.set_shim_pid(kShim);
    request.set_shim_start_time(1);
    const auto response = node_->claims().Claim(request, deadline);
    if (!response.ok()) return response.status();
    return response->generation();
  }
  // A pod that runs in a VM.
  void Run(const std::string& id, bool stopped) {
    const auto generation = Claim(id, kGuest);
    ASSERT_OK(generation);
    const int64_t pid = next_pid_++;
    host_.Start(pid, 1);
    persist::SandboxState state;
    state.sandbox_id = id;
    state.claim_bytes = kGuest;
    state.claim_generation = *generation;
    state.runtime_dir = dir_ / id;
    state.vmm = {pid, 1};
    persist::StateStore store(FileSystem::Real(), config_.paths.state_dir);
    ASSERT_OK(store.Save(state));
    laminad::v1::StartedRequest started;
    started.set_sandbox_id(id);
    started.set_generation(*generation);
    started.set_vmm_pid(pid);
    started.set_vmm_start_time(1);
    ASSERT_OK(node_->claims().Started(started));
    vms_[id] = std::make_unique<Shim>(state.runtime_dir, stopped);
  }
  milliseconds TimeOf(const std::function<void()>& call) {
    const auto begin = Clock::Real().Now();
    call();
    return std::chrono::duration_cast<milliseconds>(Clock::Real().Now() - begin);
  }

  lamina::testing::TempDir dir_;
  Config config_;
  std::map<std::string, std::unique_ptr<Shim>> vms_;
  SocketHost host_;
  std::unique_ptr<Engine> node_;
  int64_t next_pid_ = 1000;
};

// Twenty that were stopped before laminad came, and one that is well.
TEST_F(SilentVmsTest, ALookAtAllTakesAsLongAsOneTimeout) {
  for (int i = 0; i < kSilent; ++i) Run(fmt::format("silent-{}", i), true);
  Run("well", false);
  EXPECT_LT(TimeOf([&] { EXPECT_OK(node_->Reconcile()); }), kOneTimeout);
  // The one that is well was seen, whoever comes before it.
  ASSERT_OK(Claim("new", kGuest + 256 * kMiB));
  EXPECT_LE(vms_["well"]->actual_bytes(), kGuest - 256 * kMiB);
  // What fits is granted while all are looked at.
  laminad::v1::ReleaseRequest release;
  release.set_sandbox_id("new");
  ASSERT_OK(node_->claims().Release(release));
  std::jthread looks([&] { EXPECT_OK(node_->Reconcile()); });
  for (int i = 0; i < 50; ++i) {
    const std::string id = fmt::format("small-{}", i);
    const milliseconds took = TimeOf([&] { EXPECT_OK(Claim(id, 1 * kMiB)); });
    EXPECT_LT(took, milliseconds(1000)) << id;
  }
  // Known to be silent: a refusal names them, and comes at once.
  looks.join();
  EXPECT_LT(TimeOf([&] {
              EXPECT_THAT(Claim("large", 3 * kGuest),
                          HasStatus(absl::StatusCode::kResourceExhausted,
                                    "their QEMU does not answer: silent-0, silent-1, silent-10"));
            }),
            milliseconds(1000));
}

// Whom a stopped shim has never accepted fills its queue; who comes then must not wait for ever.
TEST_F(SilentVmsTest, AFullQueueIsNoAnswer) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = vmm::BalloonSocket(dir_.path());
  memcpy(address.sun_path, path.data(), path.size());
  const UniqueFd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(listen(listener.get(), 1), 0);
  std::vector<UniqueFd> waiting;
  do {
    waiting.emplace_back(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  } while (connect(waiting.back().get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  ASSERT_EQ(errno, EAGAIN);
  EXPECT_LT(
      TimeOf([&] { EXPECT_THAT(host_.OpenBalloon(dir_.path()), HasStatus(absl::StatusCode::kUnavailable)); }),
      kOneTimeout);
}

// All answered before; twenty are stopped when a claim asks for what they could give.
TEST_F(SilentVmsTest, ARefusedRoundKeepsItsTimeAndNamesThem) {
  for (int i = 0; i < kSilent; ++i) Run(fmt::format("silent-{}", i), false);
  Run("well", false);
  ASSERT_OK(node_->Reconcile());
  for (int i = 0; i < kSilent; ++i) vms_[fmt::format("silent-{}", i)]->Stop();
  const auto begin = Clock::Real().Now();
  EXPECT_THAT(Claim("large", 3 * kGuest, begin + seconds(6)),
              HasStatus(absl::StatusCode::kResourceExhausted,
                        "their QEMU does not answer: silent-0, silent-1, silent-10, silent-11, silent-12, "
                        "silent-13, silent-14, silent-15 and 12 more"));
  EXPECT_LT(Clock::Real().Now() - begin, seconds(6));
  EXPECT_EQ(vms_["well"]->actual_bytes(), kGuest);
  // What the one that is well can give is had all the same.
  EXPECT_OK(Claim("new", kGuest + 256 * kMiB));
}

}  // namespace
}  // namespace lamina::node
