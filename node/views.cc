#include "node/views.h"

#include <algorithm>

#include "base/status.h"
#include "base/version.h"

namespace lamina::node {
namespace {

void AddLayers(const layers::LayerStore& store, metrics::NodeSample& sample) {
  for (const layers::ArenaInfo& arena : store.arenas()) {
    sample.arenas.push_back({arena.id, arena.bytes, arena.held_bytes, arena.payload_bytes});
  }
  sample.layers_confined = store.confinement().ok();
  const layers::StoreCounters counters = store.counters();
  sample.layers_placed_vpmem = counters.placed_vpmem;
  sample.layers_placed_scsi = counters.placed_scsi;
  sample.layer_conversions = counters.conversions;
  sample.layer_conversion_failures = counters.conversion_failures;
  sample.layer_reuses = counters.reuses;
  sample.layer_evictions = counters.evictions;
  sample.layers_rebuilt = counters.rebuilt;
  for (const layers::ConversionInfo& one : store.conversions()) {
    ++sample.layers_converting;
    sample.converting_bytes += one.bytes;
    sample.converting_seconds = std::max(sample.converting_seconds, one.seconds);
  }
}

}  // namespace

lamina::node::v1::StatusResponse Views::status() const {
  const sizing::LedgerTotals totals = book_.ledger().totals();
  lamina::node::v1::StatusResponse out;
  out.set_version(Version());
  out.set_ready(engine_.ready());
  out.set_pressure(totals.pressure);
  if (const absl::Status state = book_.state(); !state.ok()) out.set_pressure(Message(state));
  out.set_capacity_bytes(totals.capacity_bytes);
  out.set_claimed_bytes(totals.claimed_bytes);
  out.set_available_bytes(totals.available_bytes);
  out.set_resident_bytes(totals.resident_bytes);
  out.set_sandboxes(totals.entries);
  if (const layers::LayerStore* const store = layers_.store(); store != nullptr)
    out.set_unconfined(Message(store->confinement()));
  return out;
}

lamina::node::v1::SandboxList Views::sandboxes() const {
  lamina::node::v1::SandboxList list;
  for (const auto& [id, record] : book_.All()) {
    const laminad::v1::SizingReport& sizing = record.claim().sizing();
    auto* out = list.add_sandboxes();
    out->set_id(id);
    out->set_namespace_(record.claim().pod_namespace());
    out->set_pod(record.claim().pod_name());
    out->set_uid(record.claim().pod_uid());
    out->set_vcpus(sizing.vcpus());
    out->set_vcpus_exact(sizing.vcpus_exact());
    out->set_vcpus_if_rounded_per_container(sizing.vcpus_if_rounded_per_container());
    out->set_memory_bytes(sizing.memory_bytes());
    out->set_limit_cpus(static_cast<double>(sizing.limit_nano_cpus()) / 1e9);
    out->set_limit_memory_bytes(sizing.limit_memory_bytes());
    out->set_overhead_cpus(static_cast<double>(sizing.overhead_nano_cpus()) / 1e9);
    out->set_overhead_memory_bytes(sizing.overhead_memory_bytes());
    out->set_guest_mem_total_bytes(record.guest_mem_total_bytes());
    out->set_vmm_pid(record.vmm_pid());
    out->set_state_path(record.state_path());
    for (const std::string& reason : sizing.reasons()) out->add_reasons(reason);
    out->mutable_numa_nodes()->CopyFrom(record.claim().numa_nodes());
    for (const auto& [phase, seconds] : record.boot_seconds())
      (*out->mutable_boot_seconds())[phase] = seconds;
  }
  return list;
}

lamina::node::v1::ClaimList Views::claims() const {
  const ClaimRecords records = book_.All();
  const sizing::LedgerTotals totals = book_.ledger().totals();
  lamina::node::v1::ClaimList list;
  list.set_capacity_bytes(totals.capacity_bytes);
  list.set_claimed_bytes(totals.claimed_bytes);
  list.set_available_bytes(totals.available_bytes);
  list.set_resident_bytes(totals.resident_bytes);
  list.set_reserve_bytes(config_.reserve_bytes);
  list.set_carve_out_bytes(config_.carve_out_bytes);
  for (const auto& [number, node] : totals.nodes) {
    auto* out = list.add_numa_nodes();
    out->set_node(number);
    out->set_capacity_bytes(node.capacity_bytes);
    out->set_claimed_bytes(node.claimed_bytes);
    out->set_available_bytes(node.available_bytes);
  }
  const int64_t now = UnixNanos(clock_.Wall());
  for (const sizing::LedgerEntry& entry : book_.ledger().entries()) {
    auto* out = list.add_claims();
    out->set_id(entry.id);
    out->set_generation(entry.generation);
    out->set_target_bytes(entry.target_bytes);
    out->set_resident_bytes(entry.resident_bytes);
    out->set_outstanding_bytes(entry.outstanding_bytes());
    out->set_bound(entry.bound);
    out->mutable_numa_nodes()->Add(entry.nodes.begin(), entry.nodes.end());
    if (const std::optional<BalloonFigures> figures = balloons_.figures(entry.id); figures) {
      // What its VMM takes beside the guest's memory is not the balloon's to give.
      const uint64_t base = figures->base_bytes, floor = std::min(figures->floor_bytes, base);
      const uint64_t claim = entry.target_bytes + figures->inflated_bytes;
      out->set_floor_bytes(claim > base - floor ? claim - (base - floor) : 0);
      out->set_uncooperative(figures->uncooperative);
    }
    const auto it = records.find(entry.id);
    if (it == records.end()) continue;
    out->set_namespace_(it->second.claim().pod_namespace());
    out->set_pod(it->second.claim().pod_name());
    out->set_lowered_bytes(it->second.lowered_bytes());
    out->set_age_seconds(static_cast<double>(now - it->second.claimed_unix_nanos()) / 1e9);
  }
  return list;
}

std::string Views::MetricsText() const {
  metrics::NodeSample sample;
  const sizing::LedgerTotals totals = book_.ledger().totals();
  sample.version = Version();
  sample.capacity_bytes = totals.capacity_bytes;
  sample.claimed_bytes = totals.claimed_bytes;
  sample.available_bytes = totals.available_bytes;
  sample.resident_bytes = totals.resident_bytes;
  sample.reserve_bytes = config_.reserve_bytes;
  sample.carve_out_bytes = config_.carve_out_bytes;
  sample.pressure = !totals.pressure.empty();
  for (const auto& [number, node] : totals.nodes) {
    sample.numa_nodes.push_back(
        {std::to_string(number), node.capacity_bytes, node.claimed_bytes, node.available_bytes});
  }
  for (const auto& [id, record] : book_.All()) sample.lowered_bytes += record.lowered_bytes();
  const lamina::node::v1::SandboxList all = sandboxes();
  for (const auto& s : all.sandboxes()) {
    sample.sandboxes.push_back({s.pod(), s.namespace_(), s.id(), s.memory_bytes(), s.limit_memory_bytes(),
                                s.overhead_memory_bytes(), static_cast<double>(s.vcpus()), s.limit_cpus(),
                                s.overhead_cpus()});
  }
  if (const layers::LayerStore* const store = layers_.store(); store != nullptr) AddLayers(*store, sample);
  return metrics_.Text(sample);
}

}  // namespace lamina::node
