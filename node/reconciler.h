// Brings the book in line with what runs: at laminad's start, and from time to time.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "node/balloon_rounds.h"
#include "node/balloons.h"
#include "node/claims_book.h"
#include "node/claims_engine.h"
#include "node/host.h"
#include "node/node_layers.h"
#include "node/owners.h"

namespace lamina::node {

// One thread at a time.
class Reconciler {
 public:
  Reconciler(const Config::Memory& config, Host& host, ClaimsBook& book, const Owners& owners,
             const Balloons& balloons, BalloonRounds& rounds, ClaimsEngine& claims, NodeLayers& layers)
      : config_(config),
        host_(host),
        book_(book),
        owners_(owners),
        balloons_(balloons),
        rounds_(rounds),
        claims_(claims),
        layers_(layers) {}

  // Takes what lives, drops what does not; samples residence, balloons and pressure; gives lowered VMs back
  // what is available. The first call that comes through lets claims be answered.
  absl::Status Run();

 private:
  struct Seen {
    std::vector<std::string> dead;  // claims whose shim and VM are gone
    std::set<std::string> living;
  };
  absl::StatusOr<Seen> Observe();
  // Nothing is granted while others have eaten into what the node has, no set on a NUMA node that they have
  // eaten into.
  void WatchPressure();

  const Config::Memory config_;
  Host& host_;
  ClaimsBook& book_;
  const Owners& owners_;
  const Balloons& balloons_;
  BalloonRounds& rounds_;
  ClaimsEngine& claims_;
  NodeLayers& layers_;
};

}  // namespace lamina::node
