#include "node/reconciler.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/log.h"
#include "base/status.h"
#include "base/units.h"
#include "node/other_boots.h"

namespace lamina::node {

absl::Status Reconciler::Run() {
  ASSIGN_OR_RETURN(const Seen seen, Observe());
  for (const std::string& id : seen.dead) Complain(claims_.DropIfDead(id));
  for (const persist::SandboxState& state : seen.other_boots) {
    absl::Status cleared = claims_.DropIfDead(state.sandbox_id);
    if (cleared.ok()) cleared = layers_.Release(state.sandbox_id);
    if (cleared.ok()) {
      LogInfo("sandbox {}: the host has booted since; what is left of it is removed", state.sandbox_id);
      cleared = ClearOtherBoot(fs_, config_.paths.run_dir, config_.paths.state_dir, state);
    }
    Complain(cleared);
  }
  Complain(layers_.Retain(seen.living));
  WatchPressure();
  claims_.OpenDoors();
  layers_.LogProgress();
  rounds_.Update();
  rounds_.Raise();
  Complain(book_.Repair());
  said_ = std::exchange(complaints_, {});
  return absl::OkStatus();
}

void Reconciler::Complain(const absl::Status& status) {
  if (status.ok()) return;
  const std::string text = Message(status);
  if (complaints_.insert(text).second && said_.count(text) == 0) LogWarning("reconcile: {}", text);
}

void Reconciler::WatchPressure() {
  const uint64_t least = config_.memory.min_available_bytes;
  if (least == 0) return;
  const MemoryLeft left = host_.Left();
  const sizing::LedgerTotals totals = book_.ledger().totals();
  const uint64_t promised = totals.claimed_bytes - totals.resident_bytes;  // and not used yet
  const bool eaten = left.bytes < least || left.bytes - least < promised;
  std::string pressure = eaten ? fmt::format(
                                     "{} has {} MiB of memory left, less than memory.min_available of {} "
                                     "and the {} MiB that are promised and not used yet: others than "
                                     "Lamina use it",
                                     left.where, left.bytes / kMiB, FormatBytes(least), promised / kMiB)
                               : "";
  sizing::NodeBytes sizes, on_nodes;
  const std::map<uint32_t, NumaMemory> nodes = host_.NumaNodes();
  for (const auto& [number, memory] : nodes) sizes[number] = memory.total_bytes;
  for (const auto& [number, kept] : sizing::DivideInProportion(least, sizes)) {
    const uint64_t here = nodes.at(number).left_bytes;
    on_nodes[number] = here - std::min(here, kept);
  }
  book_.ledger().Watch(std::move(pressure), on_nodes);
}

absl::StatusOr<Reconciler::Seen> Reconciler::Observe() {
  Seen seen;
  const bool at_start = !claims_.ready();
  // Processes and files are read without a lock: there may be thousands.
  ASSIGN_OR_RETURN(const std::vector<std::string> ids, owners_.states().List());
  const ClaimRecords known = book_.All();
  for (const std::string& id : ids) {
    const auto it = known.find(id);
    if (!at_start && it != known.end() && it->second.vmm_pid() != 0) continue;
    const absl::StatusOr<persist::SandboxState> state = owners_.states().Load(id);
    if (!state.ok() && state.status().code() != absl::StatusCode::kNotFound) {
      // Its VM may run: nobody else gets its layers' regions.
      seen.living.insert(id);
      if (at_start) LogWarning("{}", Message(state.status()));
    }
    if (!state.ok()) continue;
    if (!owners_.OfThisBoot(state->boot_id)) seen.other_boots.push_back(*state);
    if (owners_.VmmLives(*state))
      book_.Adopt(*state, {owners_.states().Path(id), it != known.end(), at_start});
  }
  for (const auto& [id, record] : book_.All()) {
    if (!owners_.Lives(record)) {
      seen.dead.push_back(id);
      continue;
    }
    seen.living.insert(id);
    if (record.vmm_pid() == 0) continue;
    uint64_t holds = host_.ResidentBytes(record.vmm_pid());
    // What a guest has taken back from its balloon it may fill at any time.
    if (const auto figures = balloons_.figures(id);
        figures && record.lowered_bytes() > figures->inflated_bytes)
      holds =
          std::max(holds, record.claim().bytes() - std::min(record.claim().bytes(), figures->inflated_bytes));
    book_.ledger().SetResident(id, holds);
  }
  return seen;
}

}  // namespace lamina::node
