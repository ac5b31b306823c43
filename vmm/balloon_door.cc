#include "vmm/balloon_door.h"

#include <utility>

#include "base/status.h"
#include "base/ttrpc/client.h"
#include "base/unix_socket.h"
#include "proto/balloon.pb.h"

namespace lamina::vmm {
namespace {

constexpr char kService[] = "lamina.shim.v1.Balloon";
constexpr ttrpc::Method<shim::v1::SampleRequest, shim::v1::BalloonSample> kSample{kService, "Sample"};
constexpr ttrpc::Method<shim::v1::SetTargetRequest, shim::v1::SetTargetResponse> kSetTarget{kService,
                                                                                            "SetTarget"};

// laminad asks one thing at a time, and again when it had no answer in time.
ttrpc::ServerOptions Options() {
  ttrpc::ServerOptions options;
  options.max_concurrent_calls = 4;
  options.thread_stack_bytes = 64 * 1024;
  options.idle_threads = 0;
  return options;
}

class RemoteBalloon : public Balloon {
 public:
  RemoteBalloon(std::unique_ptr<ttrpc::Client> shim, std::chrono::milliseconds timeout)
      : shim_(std::move(shim)), timeout_(timeout) {}

  absl::StatusOr<BalloonSample> Sample() override {
    ASSIGN_OR_RETURN(const shim::v1::BalloonSample said,
                     ttrpc::Call(*shim_, kSample, shim::v1::SampleRequest(), timeout_));
    return BalloonSample{said.base_bytes(), said.actual_bytes(), said.used_bytes(),
                         said.stats_unix_seconds()};
  }
  absl::Status SetTarget(uint64_t bytes) override {
    shim::v1::SetTargetRequest request;
    request.set_bytes(bytes);
    return ttrpc::Call(*shim_, kSetTarget, request, timeout_).status();
  }

 private:
  const std::unique_ptr<ttrpc::Client> shim_;
  const std::chrono::milliseconds timeout_;
};

}  // namespace

BalloonDoor::BalloonDoor() : server_(Options()) {}

absl::StatusOr<std::unique_ptr<BalloonDoor>> BalloonDoor::Open(const std::string& runtime_dir,
                                                               Balloon& balloon) {
  std::unique_ptr<BalloonDoor> door(new BalloonDoor());
  door->server_.Handle(kSample,
                       [&balloon](const ttrpc::CallContext&,
                                  const shim::v1::SampleRequest&) -> absl::StatusOr<shim::v1::BalloonSample> {
                         ASSIGN_OR_RETURN(const BalloonSample sample, balloon.Sample());
                         shim::v1::BalloonSample answer;
                         answer.set_base_bytes(sample.base_bytes);
                         answer.set_actual_bytes(sample.actual_bytes);
                         answer.set_used_bytes(sample.used_bytes);
                         answer.set_stats_unix_seconds(sample.stats_unix_seconds);
                         return answer;
                       });
  door->server_.Handle(
      kSetTarget,
      [&balloon](const ttrpc::CallContext&,
                 const shim::v1::SetTargetRequest& request) -> absl::StatusOr<shim::v1::SetTargetResponse> {
        RETURN_IF_ERROR(balloon.SetTarget(request.bytes()));
        return shim::v1::SetTargetResponse();
      });
  RETURN_IF_ERROR(door->server_.Listen(BalloonSocket(runtime_dir)));
  return door;
}

absl::StatusOr<std::unique_ptr<Balloon>> ConnectBalloon(const std::string& runtime_dir,
                                                        std::chrono::milliseconds timeout) {
  absl::StatusOr<UniqueFd> fd = ConnectUnix(BalloonSocket(runtime_dir), timeout);
  if (absl::IsNotFound(fd.status()))
    return MakeStatus(absl::StatusCode::kUnavailable, "the shim: {}", Message(fd.status()));
  RETURN_IF_ERROR(Annotate(fd.status(), "the shim"));
  return std::make_unique<RemoteBalloon>(ttrpc::Client::FromFd(std::move(*fd), "the shim"), timeout);
}

}  // namespace lamina::vmm
