#include "cri/laminad_client.h"

#include <set>

#include "base/mutex.h"
#include "base/status.h"
#include "base/ttrpc/client.h"

namespace lamina::cri {
namespace {

using laminad::v1::Empty;
using ttrpc::Method;

constexpr char kService[] = "lamina.laminad.v1.Laminad";
constexpr Method<laminad::v1::ClaimRequest, laminad::v1::ClaimResponse> kClaim{kService, "Claim"};
constexpr Method<laminad::v1::StartedRequest, Empty> kStarted{kService, "Started"};
constexpr Method<laminad::v1::ReadyRequest, Empty> kReady{kService, "Ready"};
constexpr Method<laminad::v1::RetargetRequest, Empty> kRetarget{kService, "Retarget"};
constexpr Method<laminad::v1::PlaceLayersRequest, laminad::v1::PlaceLayersResponse> kPlaceLayers{
    kService, "PlaceLayers"};
constexpr Method<laminad::v1::ReleaseRequest, Empty> kRelease{kService, "Release"};

constexpr std::chrono::seconds kTimeout{10};  // within it laminad asks balloons
constexpr std::chrono::seconds kReleaseTimeout{5};

// A connection for each call. Closing it is how laminad hears that nobody waits any more.
class Dialer : public ttrpc::Caller {
 public:
  explicit Dialer(std::string socket) : socket_(std::move(socket)) {}

  absl::Status Call(std::string_view service, std::string_view method,
                    const google::protobuf::MessageLite& request, google::protobuf::MessageLite* response,
                    std::chrono::nanoseconds timeout,
                    const std::map<std::string, std::string>& metadata) override {
    ASSIGN_OR_RETURN(const std::unique_ptr<ttrpc::Client> client, ttrpc::Client::Dial(socket_, "laminad"));
    {
      MutexLock lock(mutex_);
      clients_.insert(client.get());
    }
    const absl::Status status = client->Call(service, method, request, response, timeout, metadata);
    MutexLock lock(mutex_);
    clients_.erase(client.get());
    return status;
  }

  void CancelCalls() override {
    MutexLock lock(mutex_);
    for (ttrpc::Client* client : clients_) client->Close();
  }

  void Close() override { CancelCalls(); }  // there is no connection but those of the calls

  bool connected() const override { return true; }

 private:
  const std::string socket_;
  Mutex mutex_;
  std::set<ttrpc::Client*> clients_ GUARDED_BY(mutex_);
};

// Its own answers do not say whose they are; what became of the connection does.
absl::Status OfLaminad(const absl::Status& status) {
  return Message(status).rfind("laminad: ", 0) == 0 ? status : Annotate(status, "laminad");
}

}  // namespace

LaminadClient::LaminadClient(const std::string& socket)
    : calls_(std::make_shared<Dialer>(socket)), placing_(std::make_shared<Dialer>(socket)) {}

LaminadClient::LaminadClient(std::shared_ptr<ttrpc::Caller> caller) : calls_(caller), placing_(caller) {}

absl::StatusOr<laminad::v1::ClaimResponse> LaminadClient::Claim(const laminad::v1::ClaimRequest& request) {
  absl::StatusOr<laminad::v1::ClaimResponse> claim = ttrpc::Call(*calls_, kClaim, request, kTimeout);
  if (!claim.ok()) return OfLaminad(claim.status());
  return claim;
}

absl::Status LaminadClient::Started(const laminad::v1::StartedRequest& request) {
  return OfLaminad(ttrpc::Call(*calls_, kStarted, request, kTimeout).status());
}

absl::Status LaminadClient::Ready(const laminad::v1::ReadyRequest& request) {
  return OfLaminad(ttrpc::Call(*calls_, kReady, request, kTimeout).status());
}

absl::Status LaminadClient::Retarget(const laminad::v1::RetargetRequest& request) {
  return OfLaminad(ttrpc::Call(*calls_, kRetarget, request, kTimeout).status());
}

absl::StatusOr<laminad::v1::PlaceLayersResponse> LaminadClient::PlaceLayers(
    const laminad::v1::PlaceLayersRequest& request, std::chrono::nanoseconds timeout) {
  absl::StatusOr<laminad::v1::PlaceLayersResponse> placed =
      ttrpc::Call(*placing_, kPlaceLayers, request, timeout);
  if (!placed.ok()) return OfLaminad(placed.status());
  if (placed->placements_size() != request.sources_size()) {
    return MakeStatus(absl::StatusCode::kInternal, "laminad placed {} of {} layers",
                      placed->placements_size(), request.sources_size());
  }
  return placed;
}

void LaminadClient::CancelPlacing() { placing_->CancelCalls(); }

absl::Status LaminadClient::Release(const laminad::v1::ReleaseRequest& request) {
  return OfLaminad(ttrpc::Call(*calls_, kRelease, request, kReleaseTimeout).status());
}

}  // namespace lamina::cri
