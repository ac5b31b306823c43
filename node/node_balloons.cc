// What a NodeState makes of its VMs' balloons: room for a claim, and memory given back. docs/ledger.md has
// the rules.
#include <algorithm>

#include "base/log.h"
#include "base/status.h"
#include "node/node_state.h"

namespace lamina::node {
namespace {

std::string Names(const char* what, const std::vector<std::string>& ids) {
  return ids.empty() ? "" : fmt::format("; {}: {}", what, fmt::join(ids, ", "));
}

}  // namespace

uint64_t NodeState::MissingFor(uint64_t bytes) const {
  const sizing::LedgerTotals totals = ledger_.totals();
  // Where more is counted than there is, that is missing too.
  const uint64_t over = totals.claimed_bytes - std::min(totals.claimed_bytes, totals.capacity_bytes);
  const uint64_t missing = bytes - std::min(bytes, totals.available_bytes);
  return missing > UINT64_MAX - over ? UINT64_MAX : missing + over;
}

bool NodeState::NodeIsShort(uint64_t bytes, const sizing::NumaNodes& nodes) const {
  const std::map<uint32_t, sizing::NodeTotals> all = ledger_.nodes();
  for (const auto& [number, part] : sizing::DivideEvenly(bytes, nodes)) {
    const auto it = all.find(number);
    if (it == all.end()) continue;
    const sizing::NodeTotals& node = it->second;
    if (part > node.capacity_bytes - std::min(node.capacity_bytes, node.claimed_bytes)) return true;
  }
  return false;
}

absl::Status NodeState::WithBalloons(const std::string& id, uint64_t bytes, const sizing::NumaNodes& nodes,
                                     MonotonicTime deadline, const std::function<absl::Status()>& take) {
  const auto final = [&](const absl::Status& taken) {
    return taken.code() != absl::StatusCode::kResourceExhausted || !config_.memory.balloon ||
           (!nodes.empty() && (MissingFor(bytes) == 0 || NodeIsShort(bytes, nodes)));
  };
  absl::Status taken = take();
  if (final(taken)) return taken;
  // What is known says whether a round could help: most refusals stay as cheap as they were.
  absl::Status lowered = balloons_.CouldGive(MissingFor(bytes), id);
  if (lowered.ok()) {
    MutexLock turn(balloons_.turn());
    do {
      taken = take();
      if (final(taken)) return taken;
      lowered = LowerFor(id, bytes, deadline);
    } while (lowered.ok());
  }
  return MakeStatus(absl::StatusCode::kResourceExhausted, "{}; {}", Message(taken), Message(lowered));
}

absl::Status NodeState::LowerFor(const std::string& id, uint64_t bytes, MonotonicTime deadline) {
  if (clock_.Now() >= deadline)
    return MakeStatus(absl::StatusCode::kDeadlineExceeded,
                      "its time was over before the balloons' turn came");
  const auto start = clock_.Now();
  const uint64_t need = MissingFor(bytes);
  const BalloonRound round = balloons_.Lower(need, id, deadline);
  metrics_.CountBalloonRound(round.status.ok());
  LogInfo("balloon round for {}: {} MiB {} after {:.1f} s{}{}", id, need / kMiB,
          round.status.ok() ? "freed" : "not freed",
          std::chrono::duration<double>(clock_.Now() - start).count(),
          Names("passed over", round.passed_over), Names("uncooperative", round.uncooperative));
  if (!round.status.ok()) {
    return MakeStatus(round.status.code(), "{}{}{}", Message(round.status),
                      Names("no progress from", round.passed_over),
                      Names("uncooperative", round.uncooperative));
  }
  MutexLock lock(mutex_);
  for (const auto& [guest, inflated] : round.inflated) RETURN_IF_ERROR(SettleLocked(guest, inflated));
  return absl::OkStatus();
}

absl::Status NodeState::SettleLocked(const std::string& id, uint64_t inflated) {
  auto it = records_.find(id);
  if (it == records_.end()) return absl::OkStatus();
  const uint64_t before = it->second.lowered_bytes();
  // Written down before it is given to others.
  it->second.set_lowered_bytes(inflated);
  const absl::Status saved = SaveLocked(id);
  it = records_.find(id);
  if (it == records_.end()) return saved;
  if (!saved.ok()) {
    it->second.set_lowered_bytes(before);
    return saved;
  }
  return ledger_.Retarget(id, it->second.generation(), TargetOf(it->second));
}

void NodeState::UpdateBalloons() {
  std::vector<BalloonVm> vms;
  {
    MutexLock lock(mutex_);
    for (const auto& [id, record] : records_) {
      if (record.vmm_pid() != 0)
        vms.push_back({id, "", record.vmm_pid(), record.claim().bytes(), record.lowered_bytes()});
    }
  }
  const persist::StateStore store(fs_, config_.paths.state_dir);
  for (BalloonVm& vm : vms) {
    if (balloons_.figures(vm.id)) continue;  // reached already
    const absl::StatusOr<persist::SandboxState> state = store.Load(vm.id);
    if (state.ok()) vm.runtime_dir = state->runtime_dir;
  }
  balloons_.Update(vms);
}

void NodeState::RaiseBalloons() {
  // While a round runs, memory is sought, not given back.
  const std::unique_lock<std::mutex> turn(balloons_.turn().std_mutex(), std::try_to_lock);
  if (!turn.owns_lock()) return;
  std::vector<sizing::BalloonGuest> lowered;
  std::map<std::string, uint64_t> stray;  // what an interrupted round took and nobody knows of
  {
    MutexLock lock(mutex_);
    for (const auto& [id, record] : records_) {
      if (record.lowered_bytes() > 0) lowered.push_back({id, record.lowered_bytes()});
      const auto figures = balloons_.figures(id);
      if (figures && figures->inflated_bytes > record.lowered_bytes())
        stray[id] = figures->inflated_bytes - record.lowered_bytes();
    }
  }
  std::map<std::string, uint64_t> raise = stray;
  const sizing::LedgerTotals totals = ledger_.totals();
  const uint64_t available = ledger_.pressure().empty() ? totals.available_bytes : 0;
  for (const auto& [id, bytes] : sizing::PlanRaising(lowered, available)) {
    MutexLock lock(mutex_);
    auto it = records_.find(id);
    if (it == records_.end()) continue;
    const uint64_t before = it->second.lowered_bytes(), generation = it->second.generation();
    // Taken, then written down, then the guest's to use.
    it->second.set_lowered_bytes(before - std::min(before, bytes));
    absl::Status status = ledger_.Retarget(id, generation, TargetOf(it->second));
    if (status.ok()) status = SaveLocked(id);
    it = records_.find(id);
    if (it == records_.end()) continue;
    if (status.ok()) {
      raise[id] += bytes;
      continue;
    }
    it->second.set_lowered_bytes(before);
    ledger_.Retarget(id, generation, TargetOf(it->second)).IgnoreError();
  }
  for (const auto& [id, bytes] : raise) {
    const absl::Status status = balloons_.Raise(id, bytes);
    if (!status.ok()) LogWarning("balloon: {}", Message(status));
  }
}

}  // namespace lamina::node
