// laminad, as the shim uses it.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ttrpc/method.h"
#include "proto/laminad.pb.h"

namespace lamina::cri {

// Thread-safe. Each call is bounded. Every error begins with "laminad"; Unavailable: it is away.
class LaminadClient {
 public:
  // Dials `socket` anew for each call: laminad may have been restarted since the last one, and calls are few.
  explicit LaminadClient(const std::string& socket);
  // For tests: every call goes through `caller`.
  explicit LaminadClient(std::shared_ptr<ttrpc::Caller> caller);

  absl::StatusOr<laminad::v1::ClaimResponse> Claim(const laminad::v1::ClaimRequest& request);
  absl::Status Started(const laminad::v1::StartedRequest& request);
  absl::Status Ready(const laminad::v1::ReadyRequest& request);
  absl::Status Retarget(const laminad::v1::RetargetRequest& request);
  // A conversion may take minutes: `timeout` is the caller's own. As many places as sources, else Internal.
  absl::StatusOr<laminad::v1::PlaceLayersResponse> PlaceLayers(const laminad::v1::PlaceLayersRequest& request,
                                                               std::chrono::nanoseconds timeout);
  // PlaceLayers under way end at once with Cancelled; laminad gives their conversions up.
  void CancelPlacing();
  absl::Status Release(const laminad::v1::ReleaseRequest& request);

 private:
  const std::shared_ptr<ttrpc::Caller> calls_, placing_;
};

}  // namespace lamina::cri
