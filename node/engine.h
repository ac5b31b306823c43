// laminad without its sockets: the parts, put together.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/config.h"
#include "base/file_system.h"
#include "metrics/node_metrics.h"
#include "node/balloon_rounds.h"
#include "node/balloons.h"
#include "node/claims_book.h"
#include "node/claims_engine.h"
#include "node/host.h"
#include "node/node_layers.h"
#include "node/owners.h"
#include "node/reconciler.h"
#include "node/views.h"

namespace lamina::node {

class Engine {
 public:
  // Reads the claims' journal, opens the layer store. What they say and cannot be understood is an error; a
  // full disk is none. Nothing is granted before Reconcile(). `fs`, `host` and
  // `clock` outlive it.
  static absl::StatusOr<std::unique_ptr<Engine>> Open(const Config& config, FileSystem& fs, Host& host,
                                                      const Clock& clock);

  // Reconciler::Run; from one thread, from time to time.
  absl::Status Reconcile() { return reconciler_.Run(); }

  ClaimsEngine& claims() { return claims_; }
  NodeLayers& layers() { return *layers_; }
  const Views& views() const { return views_; }

 private:
  Engine(const Config& config, FileSystem& fs, Host& host, const Clock& clock,
         std::unique_ptr<ClaimsBook> book, std::unique_ptr<NodeLayers> layers);

  // Each knows those above it. Locks are taken in this order: a sandbox's turn (claims_), the balloons' turn,
  // the book's, then the ledger's, the journal's, the balloons' or the layer store's.
  metrics::NodeMetrics metrics_;
  const std::unique_ptr<ClaimsBook> book_;
  const std::unique_ptr<NodeLayers> layers_;
  const Owners owners_;
  Balloons balloons_;
  BalloonRounds rounds_;
  ClaimsEngine claims_;
  Reconciler reconciler_;
  const Views views_;
};

}  // namespace lamina::node
