// The state directory's disk is full: laminad serves, refuses with the reason, and goes on when there is
// room.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <thread>

#include "base/unique_fd.h"
#include "base/units.h"
#include "node/engine.h"
#include "node/rest_routes.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"
#include "tests/unit/node/fake_host.h"

namespace lamina::node {
namespace {

using lamina::testing::HasStatus;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kShim = 100, kVmm = 200;

class Node {
 public:
  explicit Node(const std::string& state_dir, FileSystem& fs = FileSystem::Real()) : fs_(fs) {
    config_.paths.state_dir = state_dir;
    config_.memory.capacity_bytes = 4 * kGiB;
    config_.memory.reserve_bytes = 0;
    config_.memory.min_available_bytes = 0;
    host_.Start(kShim, 1);
    host_.Start(kVmm, 1);
  }
  absl::Status Open() {
    engine_.reset();
    auto engine = Engine::Open(config_, fs_, host_, clock_);
    RETURN_IF_ERROR(engine.status());
    engine_ = std::move(*engine);
    return engine_->Reconcile();
  }
  Engine* operator->() { return engine_.get(); }
  absl::StatusOr<uint64_t> Claim(const std::string& id) {
    laminad::v1::ClaimRequest request;
    request.set_sandbox_id(id);
    request.set_bytes(1 * kGiB);
    request.set_shim_pid(kShim);
    request.set_shim_start_time(1);
    const auto response = engine_->claims().Claim(request);
    if (!response.ok()) return response.status();
    return response->generation();
  }
  absl::Status Place(const std::string& id, uint64_t generation) {
    laminad::v1::PlaceLayersRequest request;
    request.set_sandbox_id(id);
    request.set_generation(generation);
    request.add_sources("/no/such/layer");
    return engine_->layers().PlaceLayers(request).status();
  }
  FakeHost& host() { return host_; }

 private:
  FileSystem& fs_;
  Config config_;
  FakeHost host_;
  FakeClock clock_;
  std::unique_ptr<Engine> engine_;
};

// Runs `body` where `directory` is a disk of 64 KiB and 32 files, in a mount namespace of its own.
void OnASmallDisk(const std::string& directory, const std::function<void()>& body) {
  bool mounted = false;
  std::thread([&] {
    if (unshare(CLONE_NEWNS) != 0) return;
    ASSERT_EQ(mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    ASSERT_EQ(mount("tmpfs", directory.c_str(), "tmpfs", 0, "size=64k,nr_inodes=32"), 0);
    mounted = true;
    body();
    EXPECT_EQ(umount2(directory.c_str(), MNT_DETACH), 0);
  }).join();
  if (!mounted) GTEST_SKIP() << "needs the right to mount";
}

// Neither a page nor a file more.
void Fill(const std::string& directory) {
  const std::string page(4096, 'x');
  for (int i = 0;; ++i) {
    const std::string path = directory + "/ballast-" + std::to_string(i);
    const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    if (!fd) return;
    while (write(fd.get(), page.data(), page.size()) > 0) {
    }
  }
}

void Empty(const std::string& directory) {
  for (int i = 0; unlink((directory + "/ballast-" + std::to_string(i)).c_str()) == 0; ++i) {
  }
}

TEST(FullDisk, LaminadServesRefusesAndGoesOn) {
  lamina::testing::TempDir dir;
  OnASmallDisk(dir.path(), [&] {
    Fill(dir.path());
    Node node(dir.path());
    ASSERT_OK(node.Open());
    EXPECT_EQ(AnswerRest(node->views(), "/readyz").status, 200);
    EXPECT_THAT(AnswerRest(node->views(), "/v1/status").body,
                AllOf(HasSubstr(dir / "claims.journal"), HasSubstr("No space left on device")));
    const auto refused = node.Claim("one");
    EXPECT_THAT(refused, HasStatus(absl::StatusCode::kUnavailable, dir / "claims.journal"));
    EXPECT_THAT(refused, HasStatus(absl::StatusCode::kUnavailable, "No space left on device"));
    EXPECT_THAT(node->views().MetricsText(), HasSubstr("lamina_claims_refused_total{reason=\"disk\"} 1\n"));
    EXPECT_EQ(node->views().status().claimed_bytes(), 0u);
    // There is room again: claims at once, layers from the next look on.
    Empty(dir.path());
    const auto granted = node.Claim("one");
    ASSERT_OK(granted);
    ASSERT_OK(node->Reconcile());
    EXPECT_EQ(node->views().status().pressure(), "");
    EXPECT_THAT(node.Place("one", *granted), HasStatus(absl::StatusCode::kNotFound, "/no/such/layer"));
  });
}

TEST(FullDisk, APodThatRunsIsCountedAndItsLayersWait) {
  lamina::testing::TempDir dir;
  OnASmallDisk(dir.path(), [&] {
    Node node(dir.path());
    persist::SandboxState state;
    state.sandbox_id = "runs";
    state.claim_bytes = 1 * kGiB;
    state.claim_generation = 7;
    state.vmm = {kVmm, 1};
    ASSERT_OK(persist::StateStore(FileSystem::Real(), dir.path()).Save(state));
    Fill(dir.path());
    ASSERT_OK(node.Open());
    EXPECT_EQ(node->views().status().claimed_bytes(), 1 * kGiB);
    const absl::Status refused = node.Place("runs", 7);
    EXPECT_THAT(refused, HasStatus(absl::StatusCode::kUnavailable, dir / "layers"));
    EXPECT_THAT(refused, HasStatus(absl::StatusCode::kUnavailable, "No space left on device"));
    Empty(dir.path());
    ASSERT_OK(node->Reconcile());
    EXPECT_THAT(node.Place("runs", 7), HasStatus(absl::StatusCode::kNotFound, "/no/such/layer"));
  });
}

// Whichever call to the file system is the first to fail: laminad starts, and works once calls succeed.
TEST(FullDisk, WhateverFailsAtTheStartIsMadeGood) {
  for (int fail_at = 0;; ++fail_at) {
    lamina::testing::TempDir dir;
    FaultyFileSystem fs(FileSystem::Real());
    Node node(dir / "state", fs);
    fs.fail_at = fail_at;
    ASSERT_OK(node.Open()) << fail_at;
    EXPECT_TRUE(node->views().ready()) << fail_at;
    const bool failed = fs.calls > fail_at;
    fs.fail_at = -1;
    ASSERT_OK(node->Reconcile()) << fail_at;
    const auto granted = node.Claim("one");
    ASSERT_OK(granted) << fail_at;
    EXPECT_THAT(node.Place("one", *granted), HasStatus(absl::StatusCode::kNotFound, "/no/such/layer"))
        << fail_at;
    ASSERT_OK(node.Open()) << fail_at;
    EXPECT_EQ(node->views().status().claimed_bytes(), 1 * kGiB) << fail_at;
    if (!failed) break;
  }
}

}  // namespace
}  // namespace lamina::node
