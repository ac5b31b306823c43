#include "metrics/node_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <cmath>

namespace lamina::metrics {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

using Labels = std::vector<std::pair<std::string, std::string>>;

// Phases that a shim may report: a label must not grow with what it is sent.
const char* const kPhases[] = {"claim", "prepare", "qemu", "kernel", "agent", "configure", "total"};
const char* const kRefusals[] = {"no_memory", "pressure", "not_ready", "disk", "invalid"};

class Builder {
 public:
  MetricFamily& Family(const char* name, const char* help, MetricType type) {
    MetricFamily family;
    family.name = name;
    family.help = help;
    family.type = type;
    families.push_back(std::move(family));
    return families.back();
  }

  static void Add(MetricFamily& family, double value, const Labels& labels = {}) {
    ClientMetric metric;
    for (const auto& [name, text] : labels) metric.label.push_back({name, text});
    if (family.type == MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
    family.metric.push_back(std::move(metric));
  }

  void Gauge(const char* name, const char* help, double value) {
    Add(Family(name, help, MetricType::Gauge), value);
  }
  void Counter(const char* name, const char* help, double value) {
    Add(Family(name, help, MetricType::Counter), value);
  }

  std::vector<MetricFamily> families;
};

}  // namespace

struct NodeMetrics::Families {
  prometheus::Registry registry;
  prometheus::Histogram* claim = nullptr;
  std::map<std::string, prometheus::Counter*> refusals;
  prometheus::Counter *rounds_freed = nullptr, *rounds_refused = nullptr;
  std::map<std::string, prometheus::Histogram*> boot;
};

NodeMetrics::NodeMetrics() : families_(std::make_unique<Families>()) {
  auto& registry = families_->registry;
  families_->claim =
      &prometheus::BuildHistogram()
           .Name("lamina_claim_seconds")
           .Help("Time that a memory claim took to be answered.")
           .Register(registry)
           .Add({}, prometheus::Histogram::BucketBoundaries{0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 1});
  auto& refusals = prometheus::BuildCounter()
                       .Name("lamina_claims_refused_total")
                       .Help("Memory claims that were refused.")
                       .Register(registry);
  for (const char* reason : kRefusals) families_->refusals[reason] = &refusals.Add({{"reason", reason}});
  auto& rounds = prometheus::BuildCounter()
                     .Name("lamina_balloon_rounds_total")
                     .Help("Rounds that lowered VMs for a claim, by whether enough was freed.")
                     .Register(registry);
  families_->rounds_freed = &rounds.Add({{"result", "freed"}});
  families_->rounds_refused = &rounds.Add({{"result", "refused"}});
  auto& boot = prometheus::BuildHistogram()
                   .Name("lamina_sandbox_boot_seconds")
                   .Help("Time from the sandbox's creation to its readiness, by phase.")
                   .Register(registry);
  for (const char* phase : kPhases) {
    families_->boot[phase] = &boot.Add({{"phase", phase}}, prometheus::Histogram::BucketBoundaries{
                                                               0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16});
  }
}

NodeMetrics::~NodeMetrics() = default;

void NodeMetrics::ObserveClaim(double seconds) { families_->claim->Observe(seconds); }

void NodeMetrics::CountRefusal(const std::string& reason) {
  if (const auto it = families_->refusals.find(reason); it != families_->refusals.end())
    it->second->Increment();
}

void NodeMetrics::CountBalloonRound(bool freed) {
  (freed ? families_->rounds_freed : families_->rounds_refused)->Increment();
}

void NodeMetrics::ObserveBoot(const std::map<std::string, double>& phase_seconds) {
  for (const auto& [phase, seconds] : phase_seconds) {
    if (!std::isfinite(seconds) || seconds < 0) continue;  // one NaN would spoil the sum for ever
    if (const auto it = families_->boot.find(phase); it != families_->boot.end())
      it->second->Observe(seconds);
  }
}

std::string NodeMetrics::Text(const NodeSample& sample) const {
  Builder builder;
  Builder::Add(builder.Family("lamina_build_info", "Version of laminad.", MetricType::Gauge), 1,
               {{"version", sample.version}});
  builder.Gauge("lamina_sandboxes", "Sandboxes on this node.", static_cast<double>(sample.sandboxes.size()));
  builder.Gauge("lamina_memory_capacity_bytes", "Memory that sandboxes may claim in all.",
                static_cast<double>(sample.capacity_bytes));
  builder.Gauge("lamina_memory_claimed_bytes",
                "Memory that sandboxes count for: the larger of promise and residence each.",
                static_cast<double>(sample.claimed_bytes));
  builder.Gauge("lamina_memory_available_bytes", "Memory that can still be claimed.",
                static_cast<double>(sample.available_bytes));
  builder.Gauge("lamina_memory_resident_bytes", "Memory that sandboxes were last seen to hold.",
                static_cast<double>(sample.resident_bytes));
  builder.Gauge("lamina_memory_reserve_bytes", "Memory kept for the node itself.",
                static_cast<double>(sample.reserve_bytes));
  builder.Gauge("lamina_memory_carve_out_bytes", "Memory kept for users that do not claim.",
                static_cast<double>(sample.carve_out_bytes));
  builder.Gauge("lamina_memory_lowered_bytes", "Memory that balloons have taken from VMs for others.",
                static_cast<double>(sample.lowered_bytes));
  builder.Gauge("lamina_memory_pressure",
                "1 while nothing is granted because others have eaten into the node's memory.",
                sample.pressure ? 1 : 0);

  const size_t numa_at = builder.families.size();
  builder.Family("lamina_numa_node_capacity_bytes", "A NUMA node's part of the capacity.", MetricType::Gauge);
  builder.Family("lamina_numa_node_claimed_bytes", "Memory of a NUMA node that sets count for.",
                 MetricType::Gauge);
  builder.Family("lamina_numa_node_available_bytes", "Memory of a NUMA node that can still be claimed.",
                 MetricType::Gauge);
  for (const NumaSample& n : sample.numa_nodes) {
    const Labels labels = {{"node", n.node}};
    Builder::Add(builder.families[numa_at], static_cast<double>(n.capacity_bytes), labels);
    Builder::Add(builder.families[numa_at + 1], static_cast<double>(n.claimed_bytes), labels);
    Builder::Add(builder.families[numa_at + 2], static_cast<double>(n.available_bytes), labels);
  }

  const size_t memory_at = builder.families.size();
  builder.Family("lamina_sandbox_memory_bytes",
                 "Memory of a sandbox: what its VM has, the pod's limit, the overhead.", MetricType::Gauge);
  builder.Family("lamina_sandbox_vcpus", "CPUs of a sandbox: what its VM has, the pod's limit, the overhead.",
                 MetricType::Gauge);
  for (const SandboxSample& s : sample.sandboxes) {
    const auto add = [&](size_t family, const char* kind, double value) {
      Builder::Add(builder.families[memory_at + family], value,
                   {{"pod", s.pod}, {"namespace", s.pod_namespace}, {"sandbox", s.sandbox}, {"kind", kind}});
    };
    add(0, "configured", static_cast<double>(s.configured_memory_bytes));
    add(0, "limit", static_cast<double>(s.limit_memory_bytes));
    add(0, "overhead", static_cast<double>(s.overhead_memory_bytes));
    add(1, "configured", s.configured_vcpus);
    add(1, "limit", s.limit_vcpus);
    add(1, "overhead", s.overhead_vcpus);
  }
  MetricFamily& arenas =
      builder.Family("lamina_arena_bytes", "An arena's size, what its regions hold, and what they carry.",
                     MetricType::Gauge);
  for (const ArenaSample& a : sample.arenas) {
    Builder::Add(arenas, static_cast<double>(a.size_bytes), {{"arena", a.arena}, {"kind", "size"}});
    Builder::Add(arenas, static_cast<double>(a.held_bytes), {{"arena", a.arena}, {"kind", "held"}});
    Builder::Add(arenas, static_cast<double>(a.payload_bytes), {{"arena", a.arena}, {"kind", "payload"}});
  }
  MetricFamily& placed =
      builder.Family("lamina_layers_placed_total", "Image layers that were given a new place, by kind.",
                     MetricType::Counter);
  Builder::Add(placed, static_cast<double>(sample.layers_placed_vpmem), {{"kind", "vpmem"}});
  Builder::Add(placed, static_cast<double>(sample.layers_placed_scsi), {{"kind", "scsi"}});
  builder.Counter("lamina_layer_conversions_total", "Layer directories made into EROFS images.",
                  static_cast<double>(sample.layer_conversions));
  builder.Counter("lamina_layer_conversion_failures_total", "Conversions that failed.",
                  static_cast<double>(sample.layer_conversion_failures));
  builder.Gauge("lamina_layers_converting", "Conversions under way.",
                static_cast<double>(sample.layers_converting));
  builder.Gauge("lamina_layers_converting_bytes",
                "Bytes of image that the conversions under way have written.",
                static_cast<double>(sample.converting_bytes));
  builder.Gauge("lamina_layers_converting_seconds",
                "How long the oldest conversion under way has taken so far.", sample.converting_seconds);
  builder.Gauge("lamina_layers_confined",
                "1 while what reads image layers has its whole confinement on this node.",
                sample.layers_confined ? 1 : 0);
  builder.Counter("lamina_layer_reuses_total", "Layers that were there already.",
                  static_cast<double>(sample.layer_reuses));
  builder.Counter("lamina_layer_evictions_total", "Unused layers dropped for room or budget.",
                  static_cast<double>(sample.layer_evictions));
  builder.Counter("lamina_layers_rebuilt_total", "Damaged layers made again.",
                  static_cast<double>(sample.layers_rebuilt));

  std::vector<MetricFamily> all = families_->registry.Collect();
  all.insert(all.end(), std::make_move_iterator(builder.families.begin()),
             std::make_move_iterator(builder.families.end()));
  return prometheus::TextSerializer().Serialize(all);
}

}  // namespace lamina::metrics
