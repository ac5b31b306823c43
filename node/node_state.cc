#include "node/node_state.h"

#include <algorithm>

#include "base/log.h"
#include "base/status.h"

namespace lamina::node {
namespace {

// For a claim without a deadline; less what its answer takes for one with a deadline.
constexpr std::chrono::seconds kBalloonTime{9}, kAnswerTime{1};
// The pod's images are not known yet when its VM starts: what is attached in vain costs it memory.
constexpr uint32_t kBootArenas = 1;

sizing::NumaNodes NodesOf(const laminad::v1::ClaimRequest& claim) {
  return {claim.numa_nodes().begin(), claim.numa_nodes().end()};
}

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

}  // namespace

NodeState::NodeState(const Config& config, FileSystem& fs, Host& host, const Clock& clock, uint64_t capacity,
                     const sizing::NodeBytes& nodes)
    : config_(config),
      fs_(fs),
      host_(host),
      clock_(clock),
      ledger_(capacity, nodes),
      balloons_(config.memory, host, clock) {}

absl::StatusOr<std::unique_ptr<NodeState>> NodeState::Open(const Config& config, FileSystem& fs, Host& host,
                                                           const Clock& clock) {
  const uint64_t total =
      config.memory.capacity_bytes != 0 ? config.memory.capacity_bytes : host.MemTotalBytes();
  const uint64_t kept = config.memory.reserve_bytes + config.memory.carve_out_bytes;
  if (total <= kept) {
    return InvalidArgument("memory: reserve and carve-out ({}) leave nothing of {}", FormatBytes(kept),
                           FormatBytes(total));
  }
  sizing::NodeBytes sizes;
  for (const auto& [number, memory] : host.NumaNodes()) sizes[number] = memory.total_bytes;
  // What is kept is of the whole: each NUMA node bears its part of it.
  std::unique_ptr<NodeState> node(
      new NodeState(config, fs, host, clock, total - kept, sizing::DivideInProportion(total - kept, sizes)));
  layers::StoreOptions options;
  options.dir = config.paths.state_dir + "/layers";
  ASSIGN_OR_RETURN(options.policy, layers::ParsePolicy(config.layers.policy));
  options.arena_bytes = config.layers.arena_bytes;
  options.max_layer_bytes = config.layers.max_layer_bytes;
  options.vpmem = config.layers.vpmem;
  options.scsi_verity = config.layers.scsi_verity;
  options.idle_budget_bytes = config.layers.idle_budget_bytes;
  RETURN_IF_ERROR(fs.MakeDirectories(config.paths.state_dir, 0700));
  ASSIGN_OR_RETURN(node->layers_, layers::LayerStore::Open(fs, options));
  MutexLock lock(node->mutex_);
  ASSIGN_OR_RETURN(node->journal_,
                   ClaimsJournal::Open(fs, config.paths.state_dir + "/claims.journal", node->records_));
  for (const auto& [id, record] : node->records_) node->ledger_.Restore(node->EntryOf(record));
  return node;
}

NodeState::Turn::Turn(NodeState& node, const std::string& id) : node_(node), id_(id) {
  MutexLock lock(node_.turn_mutex_);
  while (!node_.turns_.insert(id_).second) node_.turn_ended_.Wait(node_.turn_mutex_);
}

NodeState::Turn::~Turn() {
  MutexLock lock(node_.turn_mutex_);
  node_.turns_.erase(id_);
  node_.turn_ended_.NotifyAll();
}

uint64_t NodeState::TargetOf(const Record& record) const {
  const uint64_t bytes = record.claim().bytes();
  return bytes > record.lowered_bytes() ? bytes - record.lowered_bytes() : std::min<uint64_t>(bytes, 1);
}

sizing::LedgerEntry NodeState::EntryOf(const Record& record) const {
  sizing::LedgerEntry entry;
  entry.id = record.claim().sandbox_id();
  entry.generation = record.generation();
  entry.target_bytes = TargetOf(record);
  entry.bound = record.vmm_pid() != 0;
  entry.nodes = NodesOf(record.claim());
  return entry;
}

ClaimsJournal::Ticket NodeState::WriteLocked(const std::string& id) {
  if (const auto it = records_.find(id); it != records_.end()) return journal_->Add(it->second);
  Record gone;
  gone.mutable_claim()->set_sandbox_id(id);
  gone.set_removed(true);
  return journal_->Add(gone);
}

absl::Status NodeState::SaveLocked(const std::string& id) {
  const ClaimsJournal::Ticket ticket = WriteLocked(id);
  mutex_.Unlock();
  const absl::Status status = journal_->Wait(ticket);
  mutex_.Lock();
  return status;
}

absl::Status NodeState::CheckLocked(const std::string& id, uint64_t generation) const {
  const auto it = records_.find(id);
  if (it == records_.end()) return MakeStatus(absl::StatusCode::kNotFound, "sandbox {} has no claim", id);
  if (it->second.generation() == generation) return absl::OkStatus();
  return MakeStatus(absl::StatusCode::kFailedPrecondition,
                    "sandbox {}: claim generation {} is stale, {} is current", id, generation,
                    it->second.generation());
}

bool NodeState::VmmLives(const Record& record) const {
  if (record.vmm_pid() != 0) return host_.Alive(record.vmm_pid(), record.vmm_start_time());
  // QEMU may run although its start was never told: the shim writes its pid down first.
  const persist::StateStore store(fs_, config_.paths.state_dir);
  const absl::StatusOr<persist::SandboxState> state = store.Load(record.claim().sandbox_id());
  // What cannot be read may name a VM that lives.
  if (!state.ok()) return state.status().code() != absl::StatusCode::kNotFound;
  return state->vmm.pid != 0 && host_.Alive(state->vmm.pid, state->vmm.start_time);
}

bool NodeState::Lives(const Record& record) const {
  return host_.Alive(record.claim().shim_pid(), record.claim().shim_start_time()) || VmmLives(record);
}

absl::Status NodeState::Drop(const std::string& id) {
  Record record;
  ClaimsJournal::Ticket ticket;
  {
    MutexLock lock(mutex_);
    const auto it = records_.find(id);
    if (it == records_.end()) return absl::OkStatus();
    record = std::move(it->second);
    records_.erase(it);
    ticket = WriteLocked(id);
  }
  if (const absl::Status saved = journal_->Wait(ticket); !saved.ok()) {
    MutexLock lock(mutex_);
    records_[id] = std::move(record);
    return saved;
  }
  ledger_.Dead(id).IgnoreError();
  return layers_->ReleaseSandbox(id);
}

absl::Status NodeState::Reconcile() {
  std::vector<std::string> dead;
  std::set<std::string> living;
  RETURN_IF_ERROR(Observe(dead, living));
  for (const std::string& id : dead) {
    const Turn turn(*this, id);
    {
      MutexLock lock(mutex_);
      const auto it = records_.find(id);
      if (it == records_.end() || Lives(it->second)) continue;  // released, or taken over, meanwhile
    }
    LogInfo("sandbox {}: neither its VM nor its shim lives; its claim is dropped", id);
    RETURN_IF_ERROR(Drop(id));
  }
  if (!ready_) RETURN_IF_ERROR(layers_->RetainSandboxes(living));
  WatchPressure();
  ready_ = true;
  layers_->LogProgress();
  if (config_.memory.balloon) {
    UpdateBalloons();
    RaiseBalloons();
  }
  return journal_->Repair();
}

void NodeState::WatchPressure() {
  const uint64_t least = config_.memory.min_available_bytes;
  if (least == 0) return;
  const MemoryLeft left = host_.Left();
  const sizing::LedgerTotals totals = ledger_.totals();
  const uint64_t promised = totals.claimed_bytes - totals.resident_bytes;  // and not used yet
  const bool eaten = left.bytes < least || left.bytes - least < promised;
  ledger_.SetPressure(eaten
                          ? fmt::format("{} has {} MiB of memory left, less than memory.min_available of {} "
                                        "and the {} MiB that are promised and not used yet: others than "
                                        "Lamina use it",
                                        left.where, left.bytes / kMiB, FormatBytes(least), promised / kMiB)
                          : "");
  sizing::NodeBytes sizes;
  const std::map<uint32_t, NumaMemory> nodes = host_.NumaNodes();
  for (const auto& [number, memory] : nodes) sizes[number] = memory.total_bytes;
  for (const auto& [number, kept] : sizing::DivideInProportion(least, sizes)) {
    const uint64_t here = nodes.at(number).left_bytes;
    ledger_.SetNodeLeft(number, here - std::min(here, kept));
  }
}

absl::Status NodeState::Observe(std::vector<std::string>& dead, std::set<std::string>& living) {
  // Processes and files are read without the lock: there may be thousands.
  persist::StateStore store(fs_, config_.paths.state_dir);
  ASSIGN_OR_RETURN(const std::vector<std::string> ids, store.List());
  ClaimRecords known;
  {
    MutexLock lock(mutex_);
    known = records_;
  }
  for (const std::string& id : ids) {
    const auto it = known.find(id);
    if (ready_ && it != known.end() && it->second.vmm_pid() != 0) continue;
    const absl::StatusOr<persist::SandboxState> state = store.Load(id);
    if (!state.ok() && state.status().code() != absl::StatusCode::kNotFound) {
      // Its VM may run: nobody else gets its layers' regions.
      living.insert(id);
      if (!ready_) LogWarning("{}", Message(state.status()));
    }
    if (!state.ok() || state->vmm.pid == 0 || !host_.Alive(state->vmm.pid, state->vmm.start_time)) continue;
    MutexLock lock(mutex_);
    if (it == known.end() || records_.count(id) != 0) AdoptLocked(*state);
  }
  {
    MutexLock lock(mutex_);
    known = records_;
  }
  for (const auto& [id, record] : known) {
    if (!Lives(record)) {
      dead.push_back(id);
      continue;
    }
    living.insert(id);
    if (record.vmm_pid() == 0) continue;
    uint64_t holds = host_.ResidentBytes(record.vmm_pid());
    // What a guest has taken back from its balloon it may fill at any time.
    if (const auto figures = balloons_.figures(id);
        figures && record.lowered_bytes() > figures->inflated_bytes)
      holds =
          std::max(holds, record.claim().bytes() - std::min(record.claim().bytes(), figures->inflated_bytes));
    ledger_.SetResident(id, holds);
  }
  return absl::OkStatus();
}

void NodeState::AdoptLocked(const persist::SandboxState& state) {
  const std::string& id = state.sandbox_id;
  const auto it = records_.find(id);
  if (it != records_.end()) {
    Record& record = it->second;
    if (record.generation() != state.claim_generation) return;  // of an earlier VM of this name
    // It started, or grew, and nobody said so.
    if (record.vmm_pid() == 0) {
      record.set_vmm_pid(state.vmm.pid);
      record.set_vmm_start_time(state.vmm.start_time);
    }
    if (!ready_) record.mutable_claim()->set_bytes(std::max(record.claim().bytes(), state.claim_bytes));
    sizing::LedgerEntry entry = EntryOf(record);
    if (ready_) entry.target_bytes = 0;  // what is granted holds
    ledger_.Restore(entry);
    return;
  }
  // A VM that lives though its claim was lost: what is observed counts.
  Record record;
  laminad::v1::ClaimRequest& claim = *record.mutable_claim();
  claim.set_sandbox_id(id);
  claim.set_pod_name(state.pod_name);
  claim.set_pod_namespace(state.pod_namespace);
  claim.set_pod_uid(state.pod_uid);
  claim.set_bytes(state.claim_bytes);
  claim.set_shim_pid(state.shim.pid);
  claim.set_shim_start_time(state.shim.start_time);
  for (const uint32_t node : state.numa_nodes) claim.add_numa_nodes(node);
  claim.mutable_sizing()->set_vcpus(state.vcpus);
  claim.mutable_sizing()->set_memory_bytes(state.memory_bytes);
  record.set_generation(state.claim_generation);
  record.set_vmm_pid(state.vmm.pid);
  record.set_vmm_start_time(state.vmm.start_time);
  record.set_state_path(persist::StateStore(fs_, config_.paths.state_dir).Path(id));
  ledger_.Restore(EntryOf(record));
  records_[id] = std::move(record);
}

absl::StatusOr<uint64_t> NodeState::Grant(const laminad::v1::ClaimRequest& request, MonotonicTime deadline) {
  const std::string& id = request.sandbox_id();
  const sizing::NumaNodes nodes = NodesOf(request);
  absl::StatusOr<uint64_t> generation;
  RETURN_IF_ERROR(WithBalloons(id, request.bytes(), nodes, deadline, [&] {
    generation = nodes.empty() ? ledger_.Claim(id, request.bytes(), id)
                               : ledger_.ClaimNodes(id, request.bytes(), nodes, id);
    return generation.status();
  }));
  return generation;
}

absl::StatusOr<laminad::v1::ClaimResponse> NodeState::Claim(const laminad::v1::ClaimRequest& request,
                                                            std::optional<MonotonicTime> deadline) {
  const auto start = clock_.Now();
  const std::string& id = request.sandbox_id();
  if (!persist::IsSafeId(id)) return InvalidArgument("claim: sandbox id \"{}\" is not safe", id);
  if (!ready_) {
    metrics_.CountRefusal("not_ready");
    return absl::UnavailableError("laminad has not reconciled with the running VMs yet");
  }
  laminad::v1::ClaimResponse response;
  {
    const Turn turn(*this, id);
    // Its death is what ends an unstarted claim: an owner that cannot be seen would lose it at once.
    if (!host_.Alive(request.shim_pid(), request.shim_start_time())) {
      metrics_.CountRefusal("invalid");
      return MakeStatus(
          absl::StatusCode::kFailedPrecondition,
          "claim {}: its shim (pid {}) is not seen to live; laminad must share the host's pid namespace", id,
          request.shim_pid());
    }
    std::optional<Record> known;
    {
      MutexLock lock(mutex_);
      if (const auto it = records_.find(id); it != records_.end()) known = it->second;
    }
    // A sandbox's shim that starts anew loses what the one before had reserved and never used.
    if (known && !Lives(*known)) {
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
    ClaimsJournal::Ticket ticket;
    {
      MutexLock lock(mutex_);
      Record& record = records_[id];
      *record.mutable_claim() = request;
      record.set_generation(*generation);
      if (!repeated) record.set_claimed_unix_nanos(UnixNanos(clock_.Wall()));
      ticket = WriteLocked(id);
    }
    if (const absl::Status saved = journal_->Wait(ticket); !saved.ok()) {
      if (!repeated) {
        MutexLock lock(mutex_);
        records_.erase(id);
        ledger_.Release(id, *generation);
        if (known) WriteLocked(id);  // the set that this one replaced is gone as well
      }
      return saved;
    }
    response.set_generation(*generation);
  }
  const sizing::LedgerTotals totals = ledger_.totals();
  response.set_capacity_bytes(totals.capacity_bytes);
  response.set_claimed_bytes(totals.claimed_bytes);
  response.set_available_bytes(totals.available_bytes);
  if (config_.layers.vpmem) {
    for (const layers::ArenaInfo& arena :
         layers_->ArenasOf(DomainOf(request), std::min(kBootArenas, config_.layers.max_arenas_per_pod))) {
      laminad::v1::Arena* boot = response.add_boot_arenas();
      boot->set_id(arena.id);
      boot->set_path(arena.path);
      boot->set_bytes(arena.window_bytes);
    }
  }
  metrics_.ObserveClaim(std::chrono::duration<double>(clock_.Now() - start).count());
  return response;
}

absl::Status NodeState::Started(const laminad::v1::StartedRequest& request) {
  const Turn turn(*this, request.sandbox_id());
  MutexLock lock(mutex_);
  RETURN_IF_ERROR(CheckLocked(request.sandbox_id(), request.generation()));
  RETURN_IF_ERROR(ledger_.Bind(request.sandbox_id(), request.generation()));
  Record& record = records_[request.sandbox_id()];
  record.set_vmm_pid(request.vmm_pid());
  record.set_vmm_start_time(request.vmm_start_time());
  return SaveLocked(request.sandbox_id());
}

absl::Status NodeState::Ready(const laminad::v1::ReadyRequest& request) {
  const Turn turn(*this, request.sandbox_id());
  MutexLock lock(mutex_);
  RETURN_IF_ERROR(CheckLocked(request.sandbox_id(), request.generation()));
  Record& record = records_[request.sandbox_id()];
  if (!record.boot_seconds().empty()) return absl::OkStatus();  // said before: counted before
  record.set_guest_mem_total_bytes(request.guest_mem_total_bytes());
  record.set_state_path(request.state_path());
  *record.mutable_boot_seconds() = request.phase_seconds();
  metrics_.ObserveBoot({request.phase_seconds().begin(), request.phase_seconds().end()});
  return SaveLocked(request.sandbox_id());
}

absl::Status NodeState::Retarget(const laminad::v1::RetargetRequest& request,
                                 std::optional<MonotonicTime> deadline) {
  const std::string& id = request.sandbox_id();
  if (request.bytes() == 0) return InvalidArgument("retarget {}: 0 bytes", id);
  const auto start = clock_.Now();
  const Turn turn(*this, id);
  laminad::v1::ClaimRequest before;  // the turn keeps all of it as it is, but what a balloon took
  {
    MutexLock lock(mutex_);
    RETURN_IF_ERROR(CheckLocked(id, request.generation()));
    before = records_[id].claim();
  }
  const bool resized = request.bytes() != before.bytes(), grows = request.bytes() > before.bytes();
  const bool reported =
      request.has_sizing() && request.sizing().SerializeAsString() != before.sizing().SerializeAsString();
  if (!resized && !reported) return absl::OkStatus();  // said before: durable before
  const auto set = [&](uint64_t bytes) {
    MutexLock lock(mutex_);
    Record record = records_[id];
    record.mutable_claim()->set_bytes(bytes);
    RETURN_IF_ERROR(ledger_.Retarget(id, request.generation(), TargetOf(record)));
    records_[id].mutable_claim()->set_bytes(bytes);
    return absl::OkStatus();
  };
  // Memory is taken before it is written down, and written down before it is given back: a crash between
  // never promises it twice.
  if (grows) {
    const absl::Status grown = WithBalloons(id, request.bytes() - before.bytes(), NodesOf(before),
                                            deadline ? *deadline - kAnswerTime : start + kBalloonTime,
                                            [&] { return set(request.bytes()); });
    if (!grown.ok()) {
      metrics_.CountRefusal(RefusalReason(grown.code()));
      return grown;
    }
  }
  ClaimsJournal::Ticket ticket;
  {
    MutexLock lock(mutex_);
    laminad::v1::ClaimRequest& claim = *records_[id].mutable_claim();
    claim.set_bytes(request.bytes());
    if (request.has_sizing()) *claim.mutable_sizing() = request.sizing();
    ticket = WriteLocked(id);
  }
  const absl::Status saved = journal_->Wait(ticket);
  if (!saved.ok()) {
    MutexLock lock(mutex_);
    *records_[id].mutable_claim() = before;
  }
  if (!resized || saved.ok() == grows) return saved;
  // Shrunk, or grown in vain.
  const absl::Status given = set(saved.ok() ? request.bytes() : before.bytes());
  return saved.ok() ? given : saved;
}

absl::Status NodeState::Release(const laminad::v1::ReleaseRequest& request) {
  const std::string& id = request.sandbox_id();
  if (!persist::IsSafeId(id)) return InvalidArgument("release: sandbox id \"{}\" is not safe", id);
  if (!ready_) return absl::UnavailableError("laminad has not reconciled with the running VMs yet");
  const Turn turn(*this, id);
  Record record;
  record.mutable_claim()->set_sandbox_id(id);
  bool known = false;
  {
    MutexLock lock(mutex_);
    if (const auto it = records_.find(id); it != records_.end()) {
      known = true;
      record = it->second;
    }
  }
  if (known && request.generation() != 0 && request.generation() != record.generation())
    return absl::OkStatus();
  if (known && VmmLives(record)) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "release {}: its VM (pid {}) still lives", id,
                      record.vmm_pid());
  }
  // Without a claim too: the release before may have got no further than that.
  return known ? Drop(id) : layers_->ReleaseSandbox(id);
}

}  // namespace lamina::node
