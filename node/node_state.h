// What laminad knows: claims, sandboxes, layers. One object behind the shims' API, gRPC, REST and metrics.
#pragma once

#include <atomic>
#include <map>
#include <memory>
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
#include "persist/state_store.h"
#include "proto/laminad.pb.h"
#include "proto/node/node.pb.h"
#include "sizing/ledger.h"

namespace lamina::node {

// The seam to the host's processes and memory.
class Host {
 public:
  virtual ~Host() = default;
  virtual bool Alive(int64_t pid, uint64_t start_time) = 0;
  // What the process holds that is its own: anonymous and shared memory, without mapped files (arenas are the
  // page cache's).
  virtual uint64_t ResidentBytes(int64_t pid) = 0;
  // MemTotal, or less where a cgroup around the node's pods is limited to less.
  virtual uint64_t MemTotalBytes() = 0;
  virtual uint64_t MemAvailableBytes() = 0;
  static Host& Real();
};

// The cgroups whose limits bind the node's pods, seen from a process whose /proc/<pid>/cgroup is `text`: the
// hierarchy's root and the parents of the process's own cgroup, but nothing below a "kubepods" level, where
// limits are one pod's. Pairs of {version 2?, path below the mount}.
std::vector<std::pair<bool, std::string>> PodCgroups(const std::string& text);

// Thread-safe.
class NodeState {
 public:
  // Opens layer store and claims file. Nothing is granted before Reconcile().
  static absl::StatusOr<std::unique_ptr<NodeState>> Open(const Config& config, FileSystem& fs, Host& host,
                                                         const Clock& clock);

  // Takes what lives, drops what does not; samples residence and pressure. First call: then claims are
  // granted. Run again from time to time.
  absl::Status Reconcile();

  // The shims' calls; see proto/laminad.proto for what each promises.
  absl::StatusOr<laminad::v1::ClaimResponse> Claim(const laminad::v1::ClaimRequest& request);
  absl::Status Started(const laminad::v1::StartedRequest& request);
  absl::Status Ready(const laminad::v1::ReadyRequest& request);
  absl::Status Retarget(const laminad::v1::RetargetRequest& request);
  absl::StatusOr<laminad::v1::PlaceLayersResponse> PlaceLayers(
      const laminad::v1::PlaceLayersRequest& request);
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
  // A sandbox as its shim described it.
  struct Record {
    laminad::v1::ClaimRequest claim;
    uint64_t generation = 0;
    int64_t vmm_pid = 0;
    uint64_t vmm_start_time = 0;
    int64_t claimed_unix_nanos = 0;
    uint64_t guest_mem_total_bytes = 0;
    std::string state_path;
    std::map<std::string, double> boot_seconds;
  };

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
  struct Save {
    bool done = false;
    absl::Status status;
  };

  NodeState(const Config& config, FileSystem& fs, Host& host, const Clock& clock, uint64_t capacity);
  absl::Status LoadClaims();
  // What runs, what it holds, and whose claims have no owner left.
  absl::Status Observe(std::vector<std::string>& dead, std::set<std::string>& living);
  // Durable when it returns OK. Lets go of the mutex meanwhile: changes made at the same time share one
  // write. The caller has the sandbox's turn.
  absl::Status SaveClaimsLocked() REQUIRES(mutex_);
  std::string ClaimsTextLocked() const REQUIRES(mutex_);
  absl::Status DropLocked(const std::string& id) REQUIRES(mutex_);
  bool VmmLivesLocked(const Record& record) const REQUIRES(mutex_);
  bool LivesLocked(const Record& record) const REQUIRES(mutex_);
  std::string DomainOf(const laminad::v1::ClaimRequest& claim) const;

  const Config config_;
  FileSystem& fs_;
  Host& host_;
  const Clock& clock_;
  std::atomic<bool> ready_{false};
  sizing::Ledger ledger_;
  std::unique_ptr<layers::LayerStore> layers_;
  metrics::NodeMetrics metrics_;
  mutable Mutex mutex_;  // before the ledger's and the store's
  std::map<std::string, Record> records_ GUARDED_BY(mutex_);
  std::set<std::string> turns_ GUARDED_BY(mutex_);
  CondVar turn_ended_;
  std::shared_ptr<Save> next_save_ GUARDED_BY(mutex_) = std::make_shared<Save>();
  bool saving_ GUARDED_BY(mutex_) = false;
  CondVar saved_;
};

}  // namespace lamina::node
