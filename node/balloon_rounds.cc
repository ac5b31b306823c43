#include "node/balloon_rounds.h"

#include <algorithm>
#include <mutex>

#include "base/log.h"
#include "base/status.h"

namespace lamina::node {
namespace {

std::string Names(const char* what, const std::vector<std::string>& ids) {
  return ids.empty() ? "" : fmt::format("; {}: {}", what, ListNames(ids));
}

}  // namespace

uint64_t BalloonRounds::MissingFor(uint64_t bytes) const {
  const sizing::LedgerTotals totals = book_.ledger().totals();
  // Where more is counted than there is, that is missing too.
  const uint64_t over = totals.claimed_bytes - std::min(totals.claimed_bytes, totals.capacity_bytes);
  const uint64_t missing = bytes - std::min(bytes, totals.available_bytes);
  return missing > UINT64_MAX - over ? UINT64_MAX : missing + over;
}

bool BalloonRounds::NodeIsShort(uint64_t bytes, const sizing::NumaNodes& nodes) const {
  const std::map<uint32_t, sizing::NodeTotals> all = book_.ledger().totals().nodes;
  for (const auto& [number, part] : sizing::DivideEvenly(bytes, nodes)) {
    const auto it = all.find(number);
    if (it == all.end()) continue;
    const sizing::NodeTotals& node = it->second;
    if (part > node.capacity_bytes - std::min(node.capacity_bytes, node.claimed_bytes)) return true;
  }
  return false;
}

absl::Status BalloonRounds::WithBalloons(const std::string& id, uint64_t bytes,
                                         const sizing::NumaNodes& nodes, MonotonicTime deadline,
                                         const std::function<absl::Status()>& take) {
  const auto final = [&](const absl::Status& taken) {
    return taken.code() != absl::StatusCode::kResourceExhausted || !config_.balloon ||
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

absl::Status BalloonRounds::LowerFor(const std::string& id, uint64_t bytes, MonotonicTime deadline) {
  if (clock_.Now() >= deadline)
    return MakeStatus(absl::StatusCode::kDeadlineExceeded,
                      "its time was over before the balloons' turn came");
  const auto start = clock_.Now();
  const uint64_t need = MissingFor(bytes);
  const BalloonRound round = balloons_.Lower(need, id, deadline);
  metrics_.CountBalloonRound(round.status.ok());
  LogInfo("balloon round for {}: {} MiB {} after {:.1f} s{}{}{}", id, need / kMiB,
          round.status.ok() ? "freed" : "not freed",
          std::chrono::duration<double>(clock_.Now() - start).count(),
          Names("passed over", round.passed_over), Names("uncooperative", round.uncooperative),
          Names("no answer", round.silent));
  if (!round.status.ok()) {
    return MakeStatus(
        round.status.code(), "{}{}{}{}", Message(round.status), Names("no progress from", round.passed_over),
        Names("uncooperative", round.uncooperative), Names("their QEMU does not answer", round.silent));
  }
  for (const auto& [guest, inflated] : round.inflated) RETURN_IF_ERROR(book_.Lower(guest, inflated));
  return absl::OkStatus();
}

void BalloonRounds::Update() {
  if (!config_.balloon) return;
  std::vector<BalloonVm> vms;
  for (const auto& [id, record] : book_.All()) {
    if (record.vmm_pid() == 0) continue;
    BalloonVm vm{id, "", record.vmm_pid(), record.claim().bytes(), record.lowered_bytes()};
    if (!balloons_.figures(id)) {  // not reached yet
      const absl::StatusOr<persist::SandboxState> state = states_.Load(id);
      if (state.ok()) vm.runtime_dir = state->runtime_dir;
    }
    vms.push_back(std::move(vm));
  }
  balloons_.Update(vms);
}

void BalloonRounds::Raise() {
  if (!config_.balloon) return;
  // While a round runs, memory is sought, not given back.
  const std::unique_lock<std::mutex> turn(balloons_.turn().std_mutex(), std::try_to_lock);
  if (!turn.owns_lock()) return;
  std::vector<sizing::BalloonGuest> lowered;
  std::map<std::string, uint64_t> raise;  // at first: what an interrupted round took and nobody knows of
  for (const auto& [id, record] : book_.All()) {
    if (record.lowered_bytes() > 0) lowered.push_back({id, record.lowered_bytes()});
    const auto figures = balloons_.figures(id);
    if (figures && figures->inflated_bytes > record.lowered_bytes())
      raise[id] = figures->inflated_bytes - record.lowered_bytes();
  }
  const sizing::LedgerTotals totals = book_.ledger().totals();
  const uint64_t available = totals.pressure.empty() ? totals.available_bytes : 0;
  // Taken, then written down, then the guest's to use.
  for (const auto& [id, bytes] : sizing::PlanRaising(lowered, available)) {
    if (book_.Raise(id, bytes).ok()) raise[id] += bytes;
  }
  if (!raise.empty()) balloons_.Raise(raise);
}

}  // namespace lamina::node
