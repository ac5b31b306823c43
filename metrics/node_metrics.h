// The metric families of a node. Names and units follow Prometheus' conventions; docs/laminad.md lists them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace lamina::metrics {

struct SandboxSample {
  std::string pod, pod_namespace, sandbox;
  uint64_t configured_memory_bytes = 0, limit_memory_bytes = 0, overhead_memory_bytes = 0;
  double configured_vcpus = 0, limit_vcpus = 0, overhead_vcpus = 0;
};

struct ArenaSample {
  std::string arena;
  uint64_t size_bytes = 0, held_bytes = 0, payload_bytes = 0;
};

struct NumaSample {
  std::string node;
  uint64_t capacity_bytes = 0, claimed_bytes = 0, available_bytes = 0;
};

// What is read at the moment of a scrape.
struct NodeSample {
  std::string version;
  uint64_t claimed_bytes = 0, capacity_bytes = 0, available_bytes = 0, resident_bytes = 0;
  uint64_t reserve_bytes = 0, carve_out_bytes = 0, lowered_bytes = 0;
  bool pressure = false;  // others have eaten into the node: nothing is granted
  std::vector<NumaSample> numa_nodes;
  std::vector<SandboxSample> sandboxes;
  std::vector<ArenaSample> arenas;
  uint64_t layers_placed_vpmem = 0, layers_placed_scsi = 0, layer_conversions = 0,
           layer_conversion_failures = 0;
  uint64_t layer_reuses = 0, layer_evictions = 0, layers_rebuilt = 0, layers_converting = 0;
  uint64_t converting_bytes = 0;  // written so far by the conversions under way
  double converting_seconds = 0;  // age of the oldest of them
  bool layers_confined = true;    // what reads layers has its whole confinement
};

// What is counted as it happens. Thread-safe.
class NodeMetrics {
 public:
  NodeMetrics();
  ~NodeMetrics();

  void ObserveClaim(double seconds);
  // reason: "no_memory", "pressure", "not_ready", "disk", "invalid"
  void CountRefusal(const std::string& reason);
  void CountBalloonRound(bool freed);
  void ObserveBoot(const std::map<std::string, double>& phase_seconds);

  // The text form that Prometheus scrapes.
  std::string Text(const NodeSample& sample) const;

 private:
  struct Families;
  std::unique_ptr<Families> families_;
};

}  // namespace lamina::metrics
