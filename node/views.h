// What people and Prometheus read: the node's claims, sandboxes and layers as they are now.
#pragma once

#include <string>

#include "base/clock.h"
#include "base/config.h"
#include "metrics/node_metrics.h"
#include "node/balloons.h"
#include "node/claims_book.h"
#include "node/claims_engine.h"
#include "node/node_layers.h"
#include "proto/node/node.pb.h"

namespace lamina::node {

// Thread-safe; changes nothing.
class Views {
 public:
  Views(const Config::Memory& config, const ClaimsBook& book, const Balloons& balloons,
        const ClaimsEngine& engine, const NodeLayers& layers, const metrics::NodeMetrics& metrics,
        const Clock& clock)
      : config_(config),
        book_(book),
        balloons_(balloons),
        engine_(engine),
        layers_(layers),
        metrics_(metrics),
        clock_(clock) {}

  // False until claims are answered.
  bool ready() const { return engine_.ready(); }
  lamina::node::v1::StatusResponse status() const;
  lamina::node::v1::SandboxList sandboxes() const;
  lamina::node::v1::ClaimList claims() const;
  lamina::node::v1::ArenaList arenas() const { return layers_.arenas(); }
  lamina::node::v1::LayerList layers() const { return layers_.layers(); }
  std::string MetricsText() const;

 private:
  const Config::Memory config_;
  const ClaimsBook& book_;
  const Balloons& balloons_;
  const ClaimsEngine& engine_;
  const NodeLayers& layers_;
  const metrics::NodeMetrics& metrics_;
  const Clock& clock_;
};

}  // namespace lamina::node
