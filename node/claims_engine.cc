#include "node/claims_engine.h"

#include <algorithm>

#include "base/log.h"
#include "base/safe_id.h"
#include "base/status.h"
#include "node/claim_text.h"

namespace lamina::node {
namespace {

using Record = laminad::v1::ClaimRecord;

// For a claim without a deadline; less what its answer takes for one with a deadline.
constexpr std::chrono::seconds kBalloonTime{9}, kAnswerTime{1};

const char* RefusalReason(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kResourceExhausted:
      return "no_memory";
    case absl::StatusCode::kUnavailable:
      return "pressure";
    default:
      return "invalid";
  }
}

// Not "ResourceExhausted", which speaks of the node's memory.
absl::Status NotDurable(const absl::Status& saved) {
  return MakeStatus(absl::StatusCode::kUnavailable, "nothing is granted that cannot be written down: {}",
                    Message(saved));
}

absl::Status NotReady() {
  return absl::UnavailableError("laminad has not reconciled with the running VMs yet");
}

}  // namespace

absl::Status ClaimsEngine::Drop(const std::string& id) {
  RETURN_IF_ERROR(book_.Drop(id));
  return layers_.Release(id);
}

absl::Status ClaimsEngine::DropIfDead(const std::string& id) {
  const Turns::Turn turn(turns_, id);
  const std::optional<Record> record = book_.Find(id);
  if (!record || owners_.Lives(*record)) return absl::OkStatus();  // released, or taken over, meanwhile
  LogInfo("sandbox {}: neither its VM nor its shim lives; its claim is dropped", id);
  return Drop(id);
}

absl::Status ClaimsEngine::CheckDurable() {
  if (book_.state().ok()) return absl::OkStatus();
  const absl::Status repaired = book_.Repair();
  if (repaired.ok()) return repaired;
  metrics_.CountRefusal("disk");
  return NotDurable(repaired);
}

absl::StatusOr<uint64_t> ClaimsEngine::Grant(const laminad::v1::ClaimRequest& request,
                                             MonotonicTime deadline) {
  const std::string& id = request.sandbox_id();
  const sizing::NumaNodes nodes = NodesOf(request);
  absl::StatusOr<uint64_t> generation;
  RETURN_IF_ERROR(rounds_.WithBalloons(id, request.bytes(), nodes, deadline, [&] {
    generation = nodes.empty() ? book_.ledger().Claim(id, request.bytes(), id)
                               : book_.ledger().ClaimNodes(id, request.bytes(), nodes, id);
    return generation.status();
  }));
  return generation;
}

absl::StatusOr<laminad::v1::ClaimResponse> ClaimsEngine::Claim(const laminad::v1::ClaimRequest& asked,
                                                               std::optional<MonotonicTime> deadline) {
  const auto start = clock_.Now();
  RETURN_IF_ERROR(CheckSafeId(asked.sandbox_id(), "claim: sandbox id"));
  if (const absl::Status status = CheckPodText(asked); !status.ok()) {
    metrics_.CountRefusal("invalid");
    return status;
  }
  laminad::v1::ClaimRequest request = asked;
  if (asked.has_sizing()) *request.mutable_sizing() = PrintableReport(asked.sizing());
  const std::string& id = request.sandbox_id();
  if (!ready_) {
    metrics_.CountRefusal("not_ready");
    return NotReady();
  }
  laminad::v1::ClaimResponse response;
  {
    const Turns::Turn turn(turns_, id);
    // Its death is what ends an unstarted claim: an owner that cannot be seen would lose it at once.
    if (!owners_.Alive(request.shim_pid(), request.shim_start_time())) {
      metrics_.CountRefusal("invalid");
      return MakeStatus(
          absl::StatusCode::kFailedPrecondition,
          "claim {}: its shim (pid {}) is not seen to live; laminad must share the host's pid namespace", id,
          request.shim_pid());
    }
    // Before memory is taken from others for what could not be granted.
    RETURN_IF_ERROR(CheckDurable());
    std::optional<Record> known = book_.Find(id);
    // A sandbox's shim that starts anew loses what the one before had reserved and never used.
    if (known && !owners_.Lives(*known)) {
      RETURN_IF_ERROR(Drop(id));
      known.reset();
    }
    const bool repeated =
        known && known->claim().bytes() == request.bytes() && NodesOf(known->claim()) == NodesOf(request);
    const absl::StatusOr<uint64_t> generation =
        repeated ? known->generation()
                 : Grant(request, deadline ? *deadline - kAnswerTime : start + kBalloonTime);
    if (!generation.ok()) {
      metrics_.CountRefusal(RefusalReason(generation.status().code()));
      return generation.status();
    }
    const absl::Status saved = book_.Grant(request, *generation, repeated ? 0 : UnixNanos(clock_.Wall()));
    if (!saved.ok()) {
      metrics_.CountRefusal("disk");
      return NotDurable(saved);
    }
    response.set_generation(*generation);
  }
  const sizing::LedgerTotals totals = book_.ledger().totals();
  response.set_capacity_bytes(totals.capacity_bytes);
  response.set_claimed_bytes(totals.claimed_bytes);
  response.set_available_bytes(totals.available_bytes);
  for (const layers::ArenaInfo& arena : layers_.BootArenas(request)) {
    laminad::v1::Arena* boot = response.add_boot_arenas();
    boot->set_id(arena.id);
    boot->set_path(arena.path);
    boot->set_bytes(arena.window_bytes);
  }
  metrics_.ObserveClaim(std::chrono::duration<double>(clock_.Now() - start).count());
  return response;
}

absl::Status ClaimsEngine::Started(const laminad::v1::StartedRequest& request) {
  const std::string& id = request.sandbox_id();
  const Turns::Turn turn(turns_, id);
  RETURN_IF_ERROR(book_.Of(id, request.generation()).status());
  RETURN_IF_ERROR(book_.ledger().Bind(id, request.generation()));
  // A process that runs is not taken back.
  return book_.Change(
      id, request.generation(),
      [&](Record& record) {
        record.set_vmm_pid(request.vmm_pid());
        record.set_vmm_start_time(request.vmm_start_time());
      },
      nullptr);
}

absl::Status ClaimsEngine::Ready(const laminad::v1::ReadyRequest& told) {
  const laminad::v1::ReadyRequest request = PrintableReady(told);
  const std::string& id = request.sandbox_id();
  const Turns::Turn turn(turns_, id);
  ASSIGN_OR_RETURN(const Record record, book_.Of(id, request.generation()));
  if (!record.boot_seconds().empty()) return absl::OkStatus();  // said before: counted before
  metrics_.ObserveBoot({request.phase_seconds().begin(), request.phase_seconds().end()});
  return book_.Change(
      id, request.generation(),
      [&](Record& now) {
        now.set_guest_mem_total_bytes(request.guest_mem_total_bytes());
        now.set_state_path(request.state_path());
        *now.mutable_boot_seconds() = request.phase_seconds();
      },
      nullptr);
}

absl::Status ClaimsEngine::Retarget(const laminad::v1::RetargetRequest& request,
                                    std::optional<MonotonicTime> deadline) {
  const std::string& id = request.sandbox_id();
  if (request.bytes() == 0) return InvalidArgument("retarget {}: 0 bytes", id);
  const auto start = clock_.Now();
  const Turns::Turn turn(turns_, id);
  // The turn keeps all of it as it is, but what a balloon took.
  ASSIGN_OR_RETURN(const Record record, book_.Of(id, request.generation()));
  const laminad::v1::ClaimRequest& before = record.claim();
  const bool resized = request.bytes() != before.bytes(), grows = request.bytes() > before.bytes();
  const laminad::v1::SizingReport report = PrintableReport(request.sizing());
  const bool reported =
      request.has_sizing() && report.SerializeAsString() != before.sizing().SerializeAsString();
  if (!resized && !reported) return absl::OkStatus();  // said before: durable before
  // Memory is taken before it is written down, and written down before it is given back: a crash between
  // never promises it twice.
  if (grows) {
    RETURN_IF_ERROR(CheckDurable());
    const absl::Status grown =
        rounds_.WithBalloons(id, request.bytes() - before.bytes(), NodesOf(before),
                             deadline ? *deadline - kAnswerTime : start + kBalloonTime,
                             [&] { return book_.SetBytes(id, request.generation(), request.bytes()); });
    if (!grown.ok()) {
      metrics_.CountRefusal(RefusalReason(grown.code()));
      return grown;
    }
  }
  const absl::Status saved = book_.Change(
      id, request.generation(),
      [&](Record& now) {
        now.mutable_claim()->set_bytes(request.bytes());
        if (request.has_sizing()) *now.mutable_claim()->mutable_sizing() = report;
      },
      [&](Record& now) { *now.mutable_claim() = before; });
  if (!resized || saved.ok() == grows) return saved;
  // Shrunk, or grown in vain.
  const absl::Status given =
      book_.SetBytes(id, request.generation(), saved.ok() ? request.bytes() : before.bytes());
  return saved.ok() ? given : saved;
}

absl::Status ClaimsEngine::Release(const laminad::v1::ReleaseRequest& request) {
  const std::string& id = request.sandbox_id();
  RETURN_IF_ERROR(CheckSafeId(id, "release: sandbox id"));
  if (!ready_) return NotReady();
  const Turns::Turn turn(turns_, id);
  const std::optional<Record> known = book_.Find(id);
  if (known && request.generation() != 0 && request.generation() != known->generation())
    return absl::OkStatus();
  if (known && owners_.VmmLives(*known)) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "release {}: its VM (pid {}) still lives", id,
                      known->vmm_pid());
  }
  // Without a claim too: the release before may have got no further than that.
  return known ? Drop(id) : layers_.Release(id);
}

}  // namespace lamina::node
