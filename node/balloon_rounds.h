// What the node makes of its VMs' balloons: room for a claim that does not fit, and memory given back.
// docs/ledger.md has the rules.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "base/clock.h"
#include "base/config.h"
#include "metrics/node_metrics.h"
#include "node/balloons.h"
#include "node/claims_book.h"
#include "persist/state_store.h"

namespace lamina::node {

// Thread-safe.
class BalloonRounds {
 public:
  // `states` say where a VM's balloon is reached.
  BalloonRounds(const Config::Memory& config, ClaimsBook& book, Balloons& balloons,
                const persist::StateStore& states, const Clock& clock, metrics::NodeMetrics& metrics)
      : config_(config),
        book_(book),
        balloons_(balloons),
        states_(states),
        clock_(clock),
        metrics_(metrics) {}

  // What `take` answers; where it misses memory (some `bytes` of it), once more after a round of the balloons
  // of others. Waits for other rounds. Where it is one of `nodes` that is short, no round is tried: whose
  // balloon would free memory just there is not known.
  absl::Status WithBalloons(const std::string& id, uint64_t bytes, const sizing::NumaNodes& nodes,
                            MonotonicTime deadline, const std::function<absl::Status()>& take);
  // Asks the VMs that run how they are.
  void Update();
  // Gives lowered VMs back what is available, unless a round is under way.
  void Raise();

 private:
  // How much `bytes` more would be over what the ledger has.
  uint64_t MissingFor(uint64_t bytes) const;
  bool NodeIsShort(uint64_t bytes, const sizing::NumaNodes& nodes) const;
  absl::Status LowerFor(const std::string& id, uint64_t bytes, MonotonicTime deadline);

  const Config::Memory config_;
  ClaimsBook& book_;
  Balloons& balloons_;
  const persist::StateStore& states_;
  const Clock& clock_;
  metrics::NodeMetrics& metrics_;
};

}  // namespace lamina::node
