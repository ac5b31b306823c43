// The Task service over its socket, with laminad's end played by the test. No VM is started: what comes
// before and after one, and what is refused.
#include "cri/task_service.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>

#include "base/sha256.h"
#include "base/ttrpc/client.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using std::chrono::seconds;
using testing::HasStatus;

constexpr char kService[] = "containerd.task.v2.Task";
constexpr char kLaminad[] = "lamina.laminad.v1.Laminad";

// A pod's spec with these members more.
std::string PodWith(const std::string& members = "", const std::string& annotations = "") {
  return fmt::format(R"({{"annotations": {{"io.kubernetes.cri.container-type": "sandbox",
      "io.kubernetes.cri.sandbox-name": "web"{}}}, "linux": {{"namespaces": [{{"type": "network"{}}}]}}}})",
                     annotations, members);
}

class TaskServiceTest : public ::testing::Test {
 protected:
  // What is mounted here is seen here only.
  static void SetUpTestSuite() {
    own_namespace_ = geteuid() == 0 && unshare(CLONE_NEWNS) == 0 &&
                     mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
  }
  void SetUp() override {
    config_.paths.run_dir = dir_ / "run";
    config_.paths.state_dir = dir_ / "state";
    config_.paths.guest_dir = dir_ / "guest";
    config_.hypervisor.accel = "tcg";
    config_.hypervisor.virtiofsd = dir_ / "no-virtiofsd";
    fs::create_directories(config_.paths.run_dir);
    fs::create_directories(config_.paths.guest_dir);
    std::ofstream sums(config_.paths.guest_dir + "/SHA256SUMS");
    for (const char* name : {"vmlinux", "initramfs.img"}) {
      std::ofstream(config_.paths.guest_dir + "/" + name) << name;
      sums << Sha256(name) << "  " << name << "\n";
    }
    sums.close();
    laminad_.Handle<laminad::v1::ClaimRequest, laminad::v1::ClaimResponse>(
        kLaminad, "Claim",
        [this](auto&,
               const laminad::v1::ClaimRequest& request) -> absl::StatusOr<laminad::v1::ClaimResponse> {
          ++claims_;
          claimed_bytes_ = request.bytes();
          if (!room_) return absl::ResourceExhaustedError("have 1 MiB, want more");
          laminad::v1::ClaimResponse response;
          response.set_generation(42);
          return response;
        });
    laminad_.Handle<laminad::v1::ReleaseRequest, laminad::v1::Empty>(
        kLaminad, "Release",
        [this](auto&, const laminad::v1::ReleaseRequest& request) -> absl::StatusOr<laminad::v1::Empty> {
          released_generation_ = request.generation();
          return laminad::v1::Empty();
        });
    ASSERT_OK(laminad_.Listen(config_.shim_socket()));
    sandbox_ = std::make_unique<Sandbox>(config_, events_);
    RegisterTaskService(server_, *sandbox_, events_, [this] { ++shut_downs_; });
    ASSERT_OK(server_.Listen(dir_ / "task.sock"));
    auto client = ttrpc::Client::Dial(dir_ / "task.sock", "shim");
    ASSERT_OK(client.status());
    client_ = std::move(*client);
  }

  absl::Status Call(const char* method, const google::protobuf::MessageLite& request,
                    google::protobuf::MessageLite* response = nullptr, const char* service = kService) {
    return client_->Call(service, method, request, response, seconds(60));
  }
  static containerd::TaskRequest Task(const std::string& id, const std::string& exec_id = "") {
    containerd::TaskRequest request;
    request.set_id(id);
    request.set_exec_id(exec_id);
    return request;
  }
  absl::Status Create(const std::string& spec, const std::string& id = "pod") {
    const std::string bundle = dir_ / "bundle";
    fs::create_directories(bundle);
    std::ofstream(bundle + "/config.json", std::ios::trunc) << spec;
    containerd::CreateTaskRequest request;
    request.set_id(id);
    request.set_bundle(bundle);
    return Call("Create", request);
  }
  void ExpectNothingLeft() {
    EXPECT_FALSE(fs::exists(config_.paths.state_dir + "/sandboxes/pod"));
    EXPECT_FALSE(fs::exists(config_.paths.run_dir + "/s/pod"));
    EXPECT_EQ(sandbox_->process(), nullptr);
    EXPECT_TRUE(sandbox_->IsEmpty(nullptr));
  }

  static bool own_namespace_;
  testing::TempDir dir_;
  Config config_;
  std::atomic<bool> room_{true};
  std::atomic<int> claims_{0}, shut_downs_{0};
  std::atomic<uint64_t> released_generation_{0}, claimed_bytes_{0};
  ttrpc::Server laminad_;
  EventPublisher events_{"", "k8s.io"};
  std::unique_ptr<Sandbox> sandbox_;
  ttrpc::Server server_;
  std::unique_ptr<ttrpc::Client> client_;
};

bool TaskServiceTest::own_namespace_ = false;

TEST_F(TaskServiceTest, BothVersionsAreServed) {
  containerd::ConnectResponse response;
  for (const char* service : {"containerd.task.v2.Task", "containerd.task.v3.Task"}) {
    ASSERT_OK(Call("Connect", Task("pod"), &response, service));
    EXPECT_EQ(response.shim_pid(), static_cast<uint32_t>(getpid()));
    EXPECT_EQ(response.task_pid(), 0U);
  }
}

TEST_F(TaskServiceTest, WhatIsNotThereIsNotFoundByName) {
  for (const char* method : {"State", "Start", "Delete", "Wait", "Pids", "Stats"})
    EXPECT_THAT(Call(method, Task("ghost")), HasStatus(StatusCode::kNotFound, "ghost")) << method;
  containerd::KillRequest kill;
  kill.set_id("ghost");
  EXPECT_THAT(Call("Kill", kill), HasStatus(StatusCode::kNotFound, "ghost"));
  containerd::ResizePtyRequest resize;
  resize.set_id("ghost");
  EXPECT_THAT(Call("ResizePty", resize), HasStatus(StatusCode::kNotFound, "ghost"));
  containerd::CloseIORequest close;
  close.set_id("ghost");
  close.set_stdin(true);
  EXPECT_THAT(Call("CloseIO", close), HasStatus(StatusCode::kNotFound, "ghost"));
  containerd::ExecProcessRequest exec;
  exec.set_id("ghost");
  exec.set_exec_id("e");
  EXPECT_THAT(Call("Exec", exec), HasStatus(StatusCode::kNotFound, "ghost"));
  exec.set_exec_id("../e");
  EXPECT_THAT(Call("Exec", exec), HasStatus(StatusCode::kInvalidArgument, "../e"));
}

TEST_F(TaskServiceTest, WhatIsNotOfferedSaysSo) {
  for (const char* method : {"Pause", "Resume", "Checkpoint"})
    EXPECT_THAT(Call(method, Task("pod")), HasStatus(StatusCode::kUnimplemented, method));
}

TEST_F(TaskServiceTest, ShutdownOfAnEmptyShimEndsIt) {
  containerd::ShutdownRequest request;
  request.set_id("pod");
  ASSERT_OK(Call("Shutdown", request));
  shut_downs_.wait(0);  // it follows the answer
  EXPECT_EQ(shut_downs_, 1);
}

TEST_F(TaskServiceTest, BadSpecsAreRefusedBeforeAnythingIsClaimed) {
  EXPECT_THAT(Create("not JSON"), HasStatus(StatusCode::kInvalidArgument, "config.json"));
  EXPECT_THAT(Create("{}", "../up"), HasStatus(StatusCode::kInvalidArgument, "../up"));
  EXPECT_THAT(Create("{}"), HasStatus(StatusCode::kInvalidArgument, "io.kubernetes.cri.container-type"));
  EXPECT_THAT(Create(R"({"annotations": {"io.kubernetes.cri.container-type": "sandbox",
                         "io.kubernetes.cri.sandbox-name": "web"}})"),
              HasStatus(StatusCode::kFailedPrecondition, "hostNetwork"));
  for (const auto& [key, value] : {std::pair<const char*, const char*>("sandbox-memory", "lots"),
                                   {"sandbox-cpu-quota", "1e3"},
                                   {"sandbox-cpu-quota", "-7"},
                                   {"sandbox-cpu-period", "-5"},
                                   {"sandbox-cpu-shares", "0x10"},
                                   {"sandbox-memory", "99999999999999999999"}}) {
    const absl::Status status =
        Create(PodWith("", fmt::format(R"(, "io.kubernetes.cri.{}": "{}")", key, value)));
    EXPECT_THAT(status, HasStatus(StatusCode::kInvalidArgument, key)) << value;
    EXPECT_THAT(status, HasStatus(StatusCode::kInvalidArgument, value)) << key;
  }
  EXPECT_EQ(claims_, 0);
  ExpectNothingLeft();
}

TEST_F(TaskServiceTest, ARefusedClaimIsTheAnswerAndLeavesNothing) {
  room_ = false;
  EXPECT_THAT(Create(PodWith()), HasStatus(StatusCode::kResourceExhausted, "have 1 MiB"));
  EXPECT_EQ(claims_, 1);
  ExpectNothingLeft();
}

TEST_F(TaskServiceTest, WithoutLaminadItIsUnavailable) {
  laminad_.Stop();
  unlink(config_.shim_socket().c_str());
  const absl::Status status = Create(PodWith());
  EXPECT_NOT_OK(status);
  EXPECT_NE(Message(status).find("laminad"), std::string::npos) << status;
  ExpectNothingLeft();
}

TEST_F(TaskServiceTest, ALostStateFolderReleasesTheClaim) {
  std::ofstream(dir_ / "file") << "x";
  fs::remove_all(config_.paths.state_dir);
  std::ofstream(config_.paths.state_dir) << "a file is in the way";
  EXPECT_THAT(Create(PodWith()), HasStatus(StatusCode::kInternal, config_.paths.state_dir));
  EXPECT_EQ(released_generation_, 42U);
  EXPECT_EQ(sandbox_->process(), nullptr);
}

TEST_F(TaskServiceTest, AFailedStartGivesTheClaimBackAndAnotherMayFollow) {
  if (!own_namespace_) GTEST_SKIP() << "needs root";
  for (int i = 1; i <= 2; ++i) {
    EXPECT_THAT(Create(PodWith()), HasStatus(StatusCode::kNotFound, config_.hypervisor.virtiofsd));
    EXPECT_EQ(claims_, i);
    EXPECT_EQ(claimed_bytes_, config_.sizing.overhead_memory_bytes + config_.sizing.default_memory_bytes +
                                  config_.hypervisor.vmm_overhead_memory_bytes);
    EXPECT_EQ(released_generation_, 42U);
    released_generation_ = 0;
    ExpectNothingLeft();
  }
  containerd::ShutdownRequest request;
  ASSERT_OK(Call("Shutdown", request));
  shut_downs_.wait(0);  // it follows the answer
  EXPECT_EQ(shut_downs_, 1) << "the shim is as empty as before";
}

TEST_F(TaskServiceTest, ANetworkNamespaceThatIsGoneIsNamed) {
  if (!own_namespace_) GTEST_SKIP() << "needs root";
  const std::string netns = dir_ / "netns/cni-1";
  EXPECT_THAT(Create(PodWith(fmt::format(R"(, "path": "{}")", netns))),
              HasStatus(StatusCode::kNotFound, "network namespace " + netns));
  EXPECT_EQ(released_generation_, 42U);
  ExpectNothingLeft();
}

}  // namespace
}  // namespace lamina::cri
