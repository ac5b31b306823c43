// laminad on a host that lacks something: disk, threads, VMs that answer.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "base/file_system.h"
#include "base/process.h"
#include "base/subprocess.h"
#include "base/units.h"
#include "persist/state_store.h"
#include "tests/integration/node/node_kit.h"
#include "tests/testing/status_matchers.h"
#include "vmm/balloon_door.h"
#include "vmm/qmp_client.h"
#include "vmm/vm_spec.h"

namespace lamina::node {
namespace {

using lamina::testing::HasStatus;
using std::chrono::seconds;
using ::testing::AnyOf;
using ::testing::HasSubstr;

// The state directory is a disk of 64 KiB without a free page, in a mount namespace of laminad's own.
TEST(LaminadHardship, AFullDiskRefusesAndSaysWhy) {
  Laminad laminad;
  const std::string state_dir = laminad.directory() + "/state";
  std::filesystem::create_directories(state_dir);
  ASSERT_OK(laminad.Start({"unshare", "-m", "--propagation", "private", "sh", "-c",
                           "mount -t tmpfs -o size=64k tmpfs \"$0\" || exit 9; "
                           "cat /dev/zero > \"$0/ballast\" 2> /dev/null; exec \"$@\"",
                           state_dir}))
      << laminad.Log();
  const auto refused = laminad.Claim("one", 1 * kGiB);
  EXPECT_THAT(refused, HasStatus(absl::StatusCode::kUnavailable, state_dir + "/claims.journal"));
  EXPECT_THAT(refused, HasStatus(absl::StatusCode::kUnavailable, "No space left on device"));
  EXPECT_THAT(laminad.Http("/v1/status").body, HasSubstr("No space left on device"));
  EXPECT_THAT(laminad.Http("/metrics").body, HasSubstr("lamina_claims_refused_total{reason=\"disk\"} 1\n"));
  EXPECT_EQ(RunLamina({"claims"}, &laminad).exit_code, 0);
  // Room again, made from outside its mount namespace.
  const std::string ballast = fmt::format("/proc/{}/root{}/ballast", laminad.pid(), state_dir);
  ASSERT_EQ(unlink(ballast.c_str()), 0);
  const auto granted = laminad.Claim("one", 1 * kGiB);
  ASSERT_OK(granted);
  EXPECT_TRUE(Eventually([&] {
    return laminad.Place("one", granted->generation(), {"/no/such/layer"}).status().code() ==
           absl::StatusCode::kNotFound;
  }));
  EXPECT_EQ(laminad.Stop(SIGTERM), 0) << laminad.Log();
}

// Whichever of its threads is refused: laminad does not start, and says so; or it starts and serves.
TEST(LaminadHardship, WithoutThreadsItDoesNotStart) {
  bool failed = false, served = false;
  const int enough = 16 + 2 * static_cast<int>(std::thread::hardware_concurrency());
  for (const int threads : {1, 2, 3, 4, 8, enough}) {
    Laminad laminad;
    // A user that has no other process: the limit counts them all.
    const std::string user = std::to_string(500'000 + getpid() % 100'000);
    ASSERT_EQ(chown(laminad.directory().c_str(), static_cast<uid_t>(atoi(user.c_str())), 0), 0);
    ASSERT_EQ(chown(laminad.config_path().c_str(), static_cast<uid_t>(atoi(user.c_str())), 0), 0);
    const absl::Status started = laminad.Start(
        {"prlimit", fmt::format("--nproc={}", threads), "setpriv", "--reuid", user, "--clear-groups"});
    const int code = laminad.Stop(SIGTERM);
    EXPECT_THAT(code, AnyOf(0, 1)) << threads << ": " << laminad.Log();
    if (started.ok()) {
      served = true;
      continue;
    }
    failed = true;
    EXPECT_EQ(code, 1);
    EXPECT_THAT(laminad.Log(), HasSubstr("thread"));
  }
  EXPECT_TRUE(failed);
  EXPECT_TRUE(served);
}

// A QEMU that is stopped, and what its shim has laminad ask.
class StoppedQemu {
 public:
  explicit StoppedQemu(const std::string& runtime_dir) {
    std::filesystem::create_directories(runtime_dir);
    SpawnOptions options;
    options.argv = {"qemu-system-x86_64",
                    "-machine",
                    "none",
                    "-nodefaults",
                    "-display",
                    "none",
                    "-qmp",
                    fmt::format("unix:{},server=on,wait=off", vmm::QmpSocket(runtime_dir))};
    pid_ = Spawn(options).value_or(0);
    start_time_ = ProcessStartTime(pid_).value_or(0);
    auto qmp =
        vmm::QmpClient::Connect(vmm::QmpSocket(runtime_dir), std::chrono::steady_clock::now() + seconds(60),
                                [] { return absl::OkStatus(); });
    kill(pid_, SIGSTOP);
    EXPECT_OK(qmp);
    if (!qmp.ok()) return;
    qmp_ = std::move(*qmp);
    balloon_ = std::make_unique<vmm::QmpBalloon>(*qmp_, 1 * kGiB);
    auto door = vmm::BalloonDoor::Open(runtime_dir, *balloon_);
    EXPECT_OK(door);
    if (door.ok()) door_ = std::move(*door);
  }
  ~StoppedQemu() {
    if (pid_ == 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }
  uint64_t start_time() const { return start_time_; }

 private:
  pid_t pid_ = 0;
  uint64_t start_time_ = 0;
  std::unique_ptr<vmm::QmpClient> qmp_;
  std::unique_ptr<vmm::QmpBalloon> balloon_;
  std::unique_ptr<vmm::BalloonDoor> door_;
};

TEST(LaminadHardship, TwentyStoppedQemusDelayNobody) {
  constexpr int kVms = 20;
  Laminad laminad("[memory]\ncapacity = \"24GiB\"\nreserve = 0\nmin_available = 0\n");
  ASSERT_OK(laminad.Start()) << laminad.Log();
  persist::StateStore states(FileSystem::Real(), laminad.directory() + "/state");
  std::vector<std::unique_ptr<StoppedQemu>> vms;
  for (int i = 0; i < kVms; ++i) {
    persist::SandboxState state;
    state.sandbox_id = fmt::format("stopped-{:02}", i);
    state.runtime_dir = fmt::format("{}/run/s/{}", laminad.directory(), i);
    const auto claim = laminad.Claim(state.sandbox_id, 1 * kGiB);
    ASSERT_OK(claim);
    vms.push_back(std::make_unique<StoppedQemu>(state.runtime_dir));
    state.claim_bytes = 1 * kGiB;
    state.claim_generation = claim->generation();
    state.vmm = {vms.back()->pid(), vms.back()->start_time()};
    ASSERT_OK(states.Save(state));
    laminad::v1::StartedRequest started;
    started.set_sandbox_id(state.sandbox_id);
    started.set_generation(claim->generation());
    started.set_vmm_pid(state.vmm.pid);
    started.set_vmm_start_time(state.vmm.start_time);
    laminad::v1::Empty empty;
    ASSERT_OK(laminad.Call("Started", started, &empty));
  }
  const auto time_of = [](const std::function<void()>& call) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    return std::chrono::steady_clock::now() - begin;
  };
  const auto refusal = [&] { return laminad.Claim("large", 6 * kGiB).status(); };
  // Within a look or two it knows them all; what fits is granted all the while.
  int grants = 0;
  ASSERT_TRUE(Eventually(
      [&] {
        const std::string id = fmt::format("small-{}", grants++);
        EXPECT_LT(time_of([&] { EXPECT_OK(laminad.Claim(id, 1 * kMiB)); }), seconds(2)) << id;
        return refusal().message().find("and 12 more") != absl::string_view::npos;
      },
      seconds(30)))
      << laminad.Log();
  EXPECT_LT(time_of([&] {
              EXPECT_THAT(refusal(), HasStatus(absl::StatusCode::kResourceExhausted,
                                               "their QEMU does not answer: stopped-00, stopped-01"));
            }),
            seconds(2));
  EXPECT_EQ(laminad.Stop(SIGTERM), 0) << laminad.Log();
}

}  // namespace
}  // namespace lamina::node
