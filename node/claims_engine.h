// The shims' calls about memory; see proto/laminad.proto for what each promises.
#pragma once

#include <atomic>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "metrics/node_metrics.h"
#include "node/balloon_rounds.h"
#include "node/claims_book.h"
#include "node/node_layers.h"
#include "node/owners.h"
#include "node/turns.h"
#include "proto/laminad.pb.h"

namespace lamina::node {

// Thread-safe. Answers nothing before OpenDoors().
class ClaimsEngine {
 public:
  ClaimsEngine(ClaimsBook& book, const Owners& owners, BalloonRounds& rounds, NodeLayers& layers,
               metrics::NodeMetrics& metrics, const Clock& clock)
      : book_(book), owners_(owners), rounds_(rounds), layers_(layers), metrics_(metrics), clock_(clock) {}

  // `deadline`: how long a claim or growth that does not fit may wait for balloons; none: 9 s.
  absl::StatusOr<laminad::v1::ClaimResponse> Claim(const laminad::v1::ClaimRequest& request,
                                                   std::optional<MonotonicTime> deadline = {});
  absl::Status Started(const laminad::v1::StartedRequest& request);
  absl::Status Ready(const laminad::v1::ReadyRequest& request);
  absl::Status Retarget(const laminad::v1::RetargetRequest& request,
                        std::optional<MonotonicTime> deadline = {});
  absl::Status Release(const laminad::v1::ReleaseRequest& request);

  // Takes back what a sandbox has whose VM and shim are seen dead now.
  absl::Status DropIfDead(const std::string& id);
  // What runs is in the book: from now on claims are answered.
  void OpenDoors() { ready_ = true; }
  bool ready() const { return ready_; }

 private:
  absl::StatusOr<uint64_t> Grant(const laminad::v1::ClaimRequest& request, MonotonicTime deadline);
  // Unavailable while what would be granted cannot be written down; tries anew.
  absl::Status CheckDurable();
  // The caller has the sandbox's turn.
  absl::Status Drop(const std::string& id);

  ClaimsBook& book_;
  const Owners& owners_;
  BalloonRounds& rounds_;
  NodeLayers& layers_;
  metrics::NodeMetrics& metrics_;
  const Clock& clock_;
  Turns turns_;  // before every other lock of the node
  std::atomic<bool> ready_{false};
};

}  // namespace lamina::node
