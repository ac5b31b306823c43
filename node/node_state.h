// What laminad knows: claims, sandboxes, layers. One object behind the shims' API, gRPC, REST and metrics.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/config.h"
#include "base/file_system.h"
#include "base/mutex.h"
#include "layers/layer_store.h"
#include "metrics/node_metrics.h"
#include "node/balloons.h"
#include "node/claims_journal.h"
#include "node/host.h"
#include "persist/state_store.h"
#include "proto/laminad.pb.h"
#include "proto/node/node.pb.h"
#include "sizing/ledger.h"

namespace lamina::node {

// Thread-safe.
class NodeState {
 public:
  // Opens layer store and claims journal. Nothing is granted before Reconcile().
  static absl::StatusOr<std::unique_ptr<NodeState>> Open(const Config& config, FileSystem& fs, Host& host,
                                                         const Clock& clock);

  // Takes what lives, drops what does not; samples residence, balloons and pressure; gives lowered VMs back
  // what is available. First call: then claims are granted. Run again from time to time.
  absl::Status Reconcile();

  // The shims' calls; see proto/laminad.proto for what each promises.
  // `deadline`: how long a claim or growth that does not fit may wait for balloons; none: 9 s.
  absl::StatusOr<laminad::v1::ClaimResponse> Claim(const laminad::v1::ClaimRequest& request,
                                                   std::optional<MonotonicTime> deadline = {});
  absl::Status Started(const laminad::v1::StartedRequest& request);
  absl::Status Ready(const laminad::v1::ReadyRequest& request);
  absl::Status Retarget(const laminad::v1::RetargetRequest& request,
                        std::optional<MonotonicTime> deadline = {});
  absl::StatusOr<laminad::v1::PlaceLayersResponse> PlaceLayers(const laminad::v1::PlaceLayersRequest& request,
                                                               const layers::Patience& patience = {});
  absl::Status Release(const laminad::v1::ReleaseRequest& request);

  // For people.
  lamina::node::v1::StatusResponse status() const;
  lamina::node::v1::SandboxList sandboxes() const;
  lamina::node::v1::ClaimList claims() const;
  lamina::node::v1::ArenaList arenas() const;
  lamina::node::v1::LayerList layers() const;
  absl::StatusOr<uint64_t> GcLayers(uint64_t keep_bytes);
  absl::StatusOr<layers::PackResult> PackLayers();
  std::string MetricsText() const;
  bool ready() const { return ready_; }

 private:
  using Record = laminad::v1::ClaimRecord;

  // One sandbox's requests are served one after another. Taken before mutex_.
  class Turn {
   public:
    Turn(NodeState& node, const std::string& id);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    NodeState& node_;
    const std::string id_;
  };
  NodeState(const Config& config, FileSystem& fs, Host& host, const Clock& clock, uint64_t capacity,
            const sizing::NodeBytes& nodes);
  // What runs, what it holds, and whose claims have no owner left.
  absl::Status Observe(std::vector<std::string>& dead, std::set<std::string>& living);
  // A VM lives, says its sandbox's state: the larger of that and of what is recorded counts.
  void AdoptLocked(const persist::SandboxState& state) REQUIRES(mutex_);
  // Nothing is granted while others have eaten into what the node has, no set on a NUMA node that they have
  // eaten into.
  void WatchPressure();
  void UpdateBalloons();
  void RaiseBalloons();
  // What `take` answers; where it misses memory (some `bytes` of it), once more after a round of the balloons
  // of others. Waits for other rounds. Where it is one of `nodes` that is short, no round is tried: whose
  // balloon would free memory just there is not known.
  absl::Status WithBalloons(const std::string& id, uint64_t bytes, const sizing::NumaNodes& nodes,
                            MonotonicTime deadline, const std::function<absl::Status()>& take);
  absl::StatusOr<uint64_t> Grant(const laminad::v1::ClaimRequest& request, MonotonicTime deadline);
  uint64_t MissingFor(uint64_t bytes) const;
  bool NodeIsShort(uint64_t bytes, const sizing::NumaNodes& nodes) const;
  absl::Status LowerFor(const std::string& id, uint64_t bytes, MonotonicTime deadline);
  // Writes down what a balloon took and gives it to the ledger.
  absl::Status SettleLocked(const std::string& id, uint64_t inflated) REQUIRES(mutex_);
  uint64_t TargetOf(const Record& record) const;
  sizing::LedgerEntry EntryOf(const Record& record) const;
  absl::Status CheckLocked(const std::string& id, uint64_t generation) const REQUIRES(mutex_);
  // What to wait for, without the mutex, until the sandbox's record is durable; one without a record is
  // written down as gone.
  ClaimsJournal::Ticket WriteLocked(const std::string& id) REQUIRES(mutex_);
  // Durable when it returns OK. Lets go of the mutex meanwhile.
  absl::Status SaveLocked(const std::string& id) REQUIRES(mutex_);
  // The caller has the sandbox's turn.
  absl::Status Drop(const std::string& id);
  bool VmmLives(const Record& record) const;
  bool Lives(const Record& record) const;
  std::string DomainOf(const laminad::v1::ClaimRequest& claim) const;

  const Config config_;
  FileSystem& fs_;
  Host& host_;
  const Clock& clock_;
  std::atomic<bool> ready_{false};
  sizing::Ledger ledger_;
  std::unique_ptr<layers::LayerStore> layers_;
  std::unique_ptr<ClaimsJournal> journal_;
  Balloons balloons_;
  metrics::NodeMetrics metrics_;
  mutable Mutex mutex_;  // before the ledger's, the store's, the journal's and the balloons'
  ClaimRecords records_ GUARDED_BY(mutex_);
  Mutex turn_mutex_;
  std::set<std::string> turns_ GUARDED_BY(turn_mutex_);
  CondVar turn_ended_;
};

}  // namespace lamina::node
