#include "tests/unit/cri/pod_kit.h"

#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/clock.h"
#include "cri/cleanup.h"
#include "cri/disk_image.h"
#include "guest/protocol/contract.h"
#include "tests/testing/status_matchers.h"

namespace lamina::cri {
namespace {

namespace fs = std::filesystem;

std::string Key(const std::string& container, const std::string& exec) { return container + "/" + exec; }

// Of the call that this thread makes: what was true when it began.
thread_local int call_generation = 0, cancels_before_call = 0;

constexpr char kLaminadService[] = "lamina.laminad.v1.Laminad";
constexpr ttrpc::Method<laminad::v1::ClaimRequest, laminad::v1::ClaimResponse> kClaim{kLaminadService,
                                                                                      "Claim"};
constexpr ttrpc::Method<laminad::v1::PlaceLayersRequest, laminad::v1::PlaceLayersResponse> kPlaceLayers{
    kLaminadService, "PlaceLayers"};
constexpr ttrpc::Method<laminad::v1::ReleaseRequest, laminad::v1::Empty> kRelease{kLaminadService, "Release"};

}  // namespace

class FakeGuest::Connection : public ttrpc::Caller {
 public:
  explicit Connection(FakeGuest& guest) : guest_(guest), generation_(guest.generation_) {
    ++guest_.connections_;
  }

  absl::Status Call(std::string_view service, std::string_view method,
                    const google::protobuf::MessageLite& request, google::protobuf::MessageLite* response,
                    std::chrono::nanoseconds timeout,
                    const std::map<std::string, std::string>& metadata) override {
    if (!connected()) return absl::UnavailableError("the connection ended");
    guest_.calls->ExpectCall();
    {
      MutexLock lock(guest_.mutex_);
      call_generation = generation_;
      cancels_before_call = guest_.cancels_;
    }
    if (closed_) {
      ttrpc::FakeCaller::ForgetCall();
      return absl::CancelledError("the connection was closed here");
    }
    const absl::Status status = guest_.calls->Call(service, method, request, response, timeout, metadata);
    return connected() ? status : absl::UnavailableError("the connection ended");
  }
  void CancelCalls() override {
    guest_.calls->CancelCalls();
    MutexLock lock(guest_.mutex_);
    ++guest_.cancels_;
    guest_.changed_.NotifyAll();
  }
  void Close() override {
    closed_ = true;
    CancelCalls();
  }
  bool connected() const override { return generation_ == guest_.generation_; }

 private:
  FakeGuest& guest_;
  std::atomic<bool> closed_{false};
  const int generation_;
};

std::unique_ptr<ttrpc::Caller> FakeGuest::Connect() { return std::make_unique<Connection>(*this); }

FakeGuest::FakeGuest() {
  using namespace agent::v1;
  calls->Handle(guest::kHello, [](const HelloRequest&) -> absl::StatusOr<HelloResponse> {
    HelloResponse hello;
    hello.set_protocol_version(guest::kProtocolVersion);
    hello.set_mem_total_bytes(1 << 30);
    return hello;
  });
  calls->Handle(guest::kAdjustClock, [](const AdjustClockRequest&) -> absl::StatusOr<AdjustClockResponse> {
    AdjustClockResponse answer;
    answer.set_unix_nanos(UnixNanos(Clock::Real().Wall()));
    return answer;
  });
  calls->Handle(guest::kMountVolume, [this](const MountVolumeRequest& r) -> absl::StatusOr<Empty> {
    MutexLock lock(mutex_);
    volumes_.insert(r.name());
    return Empty();
  });
  calls->Handle(guest::kUnmountVolume, [this](const UnmountVolumeRequest& r) -> absl::StatusOr<Empty> {
    MutexLock lock(mutex_);
    volumes_.erase(r.name());
    return Empty();
  });
  calls->Handle(guest::kMountLayers,
                [this](const MountLayersRequest& r) -> absl::StatusOr<MountLayersResponse> {
                  MutexLock lock(mutex_);
                  for (const Layer& layer : r.layers()) layers_.insert(layer.id());
                  return MountLayersResponse();
                });
  calls->Handle(guest::kUnmountLayers, [this](const UnmountLayersRequest& r) -> absl::StatusOr<Empty> {
    MutexLock lock(mutex_);
    for (const std::string& id : r.ids()) layers_.erase(id);
    return Empty();
  });
  calls->Handle(guest::kCreateContainer,
                [this](const CreateContainerRequest& r) -> absl::StatusOr<CreateContainerResponse> {
                  MutexLock lock(mutex_);
                  containers_.insert(r.container_id());
                  ends_[Key(r.container_id(), "")] = std::make_shared<ProcessEnd>();
                  CreateContainerResponse created;
                  created.set_pid(77);
                  return created;
                });
  calls->Handle(guest::kExecCreate, [this](const ExecCreateRequest& r) -> absl::StatusOr<Empty> {
    MutexLock lock(mutex_);
    ends_[Key(r.container_id(), r.exec_id())] = std::make_shared<ProcessEnd>();
    return Empty();
  });
  calls->Handle(guest::kStartProcess, [](const ProcessRequest&) -> absl::StatusOr<StartProcessResponse> {
    StartProcessResponse started;
    started.set_pid(78);
    return started;
  });
  calls->Handle(guest::kSignalProcess, [this](const SignalProcessRequest& r) -> absl::StatusOr<Empty> {
    MutexLock lock(mutex_);
    if (!ignore_signals_) EndLocked(Key(r.container_id(), r.exec_id()), 128 + r.signal());
    return Empty();
  });
  calls->Handle(guest::kWaitProcess,
                [this](const ProcessRequest& r) { return Wait(Key(r.container_id(), r.exec_id())); });
  calls->Handle(guest::kDeleteProcess, [this](const ProcessRequest& r) -> absl::StatusOr<Empty> {
    MutexLock lock(mutex_);
    if (r.exec_id().empty()) containers_.erase(r.container_id());
    EndLocked(Key(r.container_id(), r.exec_id()), 137);
    return Empty();
  });
  calls->Handle(guest::kSetVcpus, [](const SetVcpusRequest& r) -> absl::StatusOr<SetVcpusResponse> {
    SetVcpusResponse answer;
    answer.set_online(r.vcpus());
    return answer;
  });
}

absl::StatusOr<agent::v1::WaitProcessResponse> FakeGuest::Wait(const std::string& process) {
  MutexLock lock(mutex_);
  const std::shared_ptr<ProcessEnd> end = EndOf(process);
  while (!end->status && cancels_ == cancels_before_call && call_generation == generation_)
    changed_.Wait(mutex_);
  if (!end->status) return absl::CancelledError("the call was cancelled");
  agent::v1::WaitProcessResponse answer;
  answer.set_exit_status(*end->status);
  return answer;
}

std::shared_ptr<FakeGuest::ProcessEnd> FakeGuest::EndOf(const std::string& process) {
  std::shared_ptr<ProcessEnd>& end = ends_[process];
  if (end == nullptr) end = std::make_shared<ProcessEnd>();
  return end;
}

void FakeGuest::EndLocked(const std::string& process, uint32_t status) {
  const std::shared_ptr<ProcessEnd> end = EndOf(process);
  if (!end->status) end->status = status;
  changed_.NotifyAll();
}

void FakeGuest::End(const std::string& container, uint32_t status) {
  MutexLock lock(mutex_);
  EndLocked(Key(container, ""), status);
}

void FakeGuest::IgnoreSignals() {
  MutexLock lock(mutex_);
  ignore_signals_ = true;
}

void FakeGuest::BreakConnections() {
  MutexLock lock(mutex_);
  ++generation_;
  changed_.NotifyAll();
}

std::set<std::string> FakeGuest::containers() const {
  MutexLock lock(mutex_);
  return containers_;
}

std::set<std::string> FakeGuest::layers() const {
  MutexLock lock(mutex_);
  return layers_;
}

std::set<std::string> FakeGuest::volumes() const {
  MutexLock lock(mutex_);
  return volumes_;
}

bool PodTest::own_namespace_ = false;

void PodTest::SetUpTestSuite() {
  own_namespace_ = geteuid() == 0 && unshare(CLONE_NEWNS) == 0 &&
                   mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
}

void PodTest::SetUp() {
  if (!own_namespace_) GTEST_SKIP() << "needs root";
  config_.paths.run_dir = dir_ / "run";
  config_.paths.state_dir = dir_ / "state";
  config_.sizing.mode = "static";  // nothing that watches the guest's memory makes calls of its own
  fs::create_directories(config_.paths.run_dir);
  fs::create_directories(dir_ / "layer");
  fs::create_directories(dir_ / "volume");
  laminad_->Handle(kClaim,
                   [this](const laminad::v1::ClaimRequest&) -> absl::StatusOr<laminad::v1::ClaimResponse> {
                     ++claims_;
                     laminad::v1::ClaimResponse claim;
                     claim.set_generation(42);
                     return claim;
                   });
  laminad_->Handle(kRelease,
                   [this](const laminad::v1::ReleaseRequest&) -> absl::StatusOr<laminad::v1::Empty> {
                     ++releases_;
                     return laminad::v1::Empty();
                   });
  laminad_->Handle(
      kPlaceLayers,
      [](const laminad::v1::PlaceLayersRequest& r) -> absl::StatusOr<laminad::v1::PlaceLayersResponse> {
        laminad::v1::PlaceLayersResponse placed;
        for (int i = 0; i < r.sources_size(); ++i) {
          laminad::v1::Placement* place = placed.add_placements();
          place->set_layer_id(std::string(64, 'a'));
          place->set_kind(laminad::v1::Placement::SCSI);
          place->set_image_path("/layers/a.erofs");
          place->set_payload_bytes(4096);
        }
        return placed;
      });
  MakeSandbox();
}

void PodTest::TearDown() { sandbox_.reset(); }

VmDoors PodTest::Doors() {
  return {hypervisor_,
          [this](const std::string&) -> absl::StatusOr<std::unique_ptr<ttrpc::Caller>> {
            return guest_.Connect();
          },
          [this](const std::string&) -> absl::StatusOr<UniqueFd> {
            int ends[2];
            if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
              return absl::InternalError("socketpair");
            stdio_ends_.emplace_back(ends[0]);
            return UniqueFd(ends[1]);
          },
          {.first = std::chrono::hours(24)}};  // else it took the fault meant for another call
}

void PodTest::MakeSandbox() {
  sandbox_.reset();
  sandbox_ = std::make_unique<Sandbox>(config_, events_,
                                       Sandbox::Seams{LaminadClient(laminad_), Doors(), kill_bound_});
}

absl::Status PodTest::Start(Deadline deadline) {
  const std::string bundle = dir_ / "bundle";
  fs::create_directories(bundle);
  std::ofstream(bundle + "/config.json", std::ios::trunc) <<
      R"({"annotations": {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-name": "web"},
          "linux": {"namespaces": [{"type": "network"}]}})";
  return sandbox_->Start("pod", bundle, deadline);
}

containerd::CreateTaskRequest PodTest::ContainerRequest(const std::string& id) {
  const std::string bundle = dir_ / ("bundle-" + id);
  fs::create_directories(bundle);
  std::ofstream(bundle + "/config.json", std::ios::trunc) << fmt::format(
      R"({{"process": {{"args": ["sh"]}}, "root": {{"path": "rootfs"}},
          "mounts": [{{"destination": "/data", "type": "bind", "source": "{}", "options": ["rbind"]}}],
          "annotations": {{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod",
                           "io.kubernetes.cri.container-name": "{}"}}}})",
      dir_ / "volume", id);
  containerd::CreateTaskRequest request;
  request.set_id(id);
  request.set_bundle(bundle);
  containerd::Mount* rootfs = request.add_rootfs();
  rootfs->set_type("overlay");
  rootfs->set_source("overlay");
  rootfs->add_options("lowerdir=" + (dir_ / "layer"));
  const std::string upper = dir_ / ("uppers/" + id);
  fs::create_directories(upper);
  rootfs->add_options("upperdir=" + upper);
  return request;
}

absl::Status PodTest::Create(const std::string& id, Deadline deadline) {
  return sandbox_->containers().Create(ContainerRequest(id), deadline).status();
}

void PodTest::Run(const std::string& id) {
  ASSERT_OK(Create(id));
  ASSERT_OK(sandbox_->containers().Start(id, ""));
}

persist::SandboxState PodTest::State() {
  persist::StateStore store(FileSystem::Real(), config_.paths.state_dir);
  const auto state = store.Load("pod");
  EXPECT_OK(state);
  return state.ok() ? *state : persist::SandboxState();
}

std::set<std::string> PodTest::RootImages() const {
  std::set<std::string> owners;
  std::error_code none;
  for (const auto& upper : fs::directory_iterator(dir_ / "uppers", none)) {
    for (const auto& file : fs::directory_iterator(upper.path())) {
      EXPECT_EQ(file.path().filename(), kRootImage);
      owners.insert(upper.path().filename().string());
    }
  }
  return owners;
}

void PodTest::ExpectNothingLeft() {
  EXPECT_TRUE(RootImages().empty());
  EXPECT_EQ(hypervisor_.processes(), 0U);
  EXPECT_EQ(sandbox_->process(), nullptr);
  EXPECT_FALSE(fs::exists(config_.paths.state_dir + "/sandboxes/pod"));
  EXPECT_FALSE(fs::exists(RuntimeDir(config_, "pod")));
  EXPECT_TRUE(claims_ == 0 || releases_ > 0);
}

void PodTest::ExpectContainers(const std::set<std::string>& ids) {
  EXPECT_EQ(guest_.containers(), ids);
  EXPECT_EQ(guest_.layers().empty(), ids.empty());
  std::set<std::string> known, bound;
  const persist::SandboxState state = State();
  for (const auto& [id, container] : state.containers) known.insert(id);
  EXPECT_EQ(known, ids);
  EXPECT_EQ(RootImages(), ids);
  EXPECT_EQ(state.disks.size(), ids.size());
  EXPECT_EQ(guest_.volumes().size(), ids.size());
  for (const auto& entry : fs::directory_iterator(RuntimeDir(config_, "pod") + "/shared.points"))
    bound.insert(entry.path().filename().string());
  EXPECT_EQ(bound.size(), ids.size());
  EXPECT_EQ(sandbox_->containers().empty(), ids.empty());
}

}  // namespace lamina::cri
