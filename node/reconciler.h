// Brings the book in line with what runs: at laminad's start, and from time to time.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "base/file_system.h"
#include "node/balloon_rounds.h"
#include "node/balloons.h"
#include "node/claims_book.h"
#include "node/claims_engine.h"
#include "node/host.h"
#include "node/node_layers.h"
#include "node/owners.h"
#include "persist/sandbox_state.h"

namespace lamina::node {

// One thread at a time.
class Reconciler {
 public:
  Reconciler(const Config& config, FileSystem& fs, Host& host, ClaimsBook& book, const Owners& owners,
             const Balloons& balloons, BalloonRounds& rounds, ClaimsEngine& claims, NodeLayers& layers)
      : config_(config),
        fs_(fs),
        host_(host),
        book_(book),
        owners_(owners),
        balloons_(balloons),
        rounds_(rounds),
        claims_(claims),
        layers_(layers) {}

  // Takes what lives, drops what does not; samples residence, balloons and pressure; gives lowered VMs back
  // what is available; clears what other boots have left. The first call that comes through lets claims be
  // answered. What cannot be written (the disk is full) is logged and tried again the next time; an error:
  // the sandboxes' states cannot be listed.
  absl::Status Run();

 private:
  struct Seen {
    std::vector<std::string> dead;  // claims whose shim and VM are gone
    std::set<std::string> living;
    std::vector<persist::SandboxState> other_boots;
  };
  absl::StatusOr<Seen> Observe();
  // Says what went wrong, once as long as it is the same.
  void Complain(const absl::Status& status);
  // Nothing is granted while others have eaten into what the node has, no set on a NUMA node that they have
  // eaten into.
  void WatchPressure();

  const Config config_;
  FileSystem& fs_;
  Host& host_;
  ClaimsBook& book_;
  const Owners& owners_;
  const Balloons& balloons_;
  BalloonRounds& rounds_;
  ClaimsEngine& claims_;
  NodeLayers& layers_;
  std::set<std::string> complaints_, said_;  // of this run, of the one before
};

}  // namespace lamina::node
