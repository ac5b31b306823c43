#include "node/node_state.h"

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>

#include "base/log.h"
#include "base/status.h"

namespace lamina::node {
namespace {

using nlohmann::json;

constexpr int kClaimsVersion = 1;
// The pod's images are not known yet when its VM starts: what is attached in vain costs it memory.
constexpr uint32_t kBootArenas = 1;

std::string Hex(const std::string& bytes) {
  std::string out;
  for (const char c : bytes) out += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return out;
}

std::string Unhex(const std::string& text) {
  std::string out;
  for (size_t i = 0; i + 1 < text.size(); i += 2)
    out.push_back(static_cast<char>(strtoul(text.substr(i, 2).c_str(), nullptr, 16)));
  return out;
}

}  // namespace

NodeState::NodeState(const Config& config, FileSystem& fs, Host& host, const Clock& clock, uint64_t capacity)
    : config_(config), fs_(fs), host_(host), clock_(clock), ledger_(capacity) {}

absl::StatusOr<std::unique_ptr<NodeState>> NodeState::Open(const Config& config, FileSystem& fs, Host& host,
                                                           const Clock& clock) {
  const uint64_t total =
      config.memory.capacity_bytes != 0 ? config.memory.capacity_bytes : host.MemTotalBytes();
  const uint64_t kept = config.memory.reserve_bytes + config.memory.carve_out_bytes;
  if (total <= kept) {
    return InvalidArgument("memory: reserve and carve-out ({}) leave nothing of {}", FormatBytes(kept),
                           FormatBytes(total));
  }
  std::unique_ptr<NodeState> node(new NodeState(config, fs, host, clock, total - kept));
  layers::StoreOptions options;
  options.dir = config.paths.state_dir + "/layers";
  options.policy = config.layers.policy;
  options.arena_bytes = config.layers.arena_bytes;
  options.max_layer_bytes = config.layers.max_layer_bytes;
  options.vpmem = config.layers.vpmem;
  options.idle_budget_bytes = config.layers.idle_budget_bytes;
  RETURN_IF_ERROR(fs.MakeDirectories(config.paths.state_dir, 0700));
  ASSIGN_OR_RETURN(node->layers_, layers::LayerStore::Open(fs, options));
  RETURN_IF_ERROR(node->LoadClaims());
  return node;
}

NodeState::Turn::Turn(NodeState& node, const std::string& id) : node_(node), id_(id) {
  MutexLock lock(node_.mutex_);
  while (!node_.turns_.insert(id_).second) node_.turn_ended_.Wait(node_.mutex_);
}

NodeState::Turn::~Turn() {
  MutexLock lock(node_.mutex_);
  node_.turns_.erase(id_);
  node_.turn_ended_.NotifyAll();
}

absl::Status NodeState::SaveClaimsLocked() {
  const std::shared_ptr<Save> mine = next_save_;
  while (!mine->done) {
    if (saving_) {
      saved_.Wait(mutex_);
      continue;
    }
    saving_ = true;
    next_save_ = std::make_shared<Save>();
    const std::string text = ClaimsTextLocked();
    mutex_.Unlock();
    const absl::Status status = Annotate(
        WriteFileAtomically(fs_, config_.paths.state_dir + "/claims.json", text, 0600), "save the claims");
    mutex_.Lock();
    saving_ = false;
    mine->done = true;
    mine->status = status;
    saved_.NotifyAll();
  }
  return mine->status;
}

std::string NodeState::ClaimsTextLocked() const {
  json claims = json::array();
  for (const auto& [id, record] : records_) {
    claims.push_back({{"id", id},
                      {"claim", Hex(record.claim.SerializeAsString())},
                      {"generation", record.generation},
                      {"vmm_pid", record.vmm_pid},
                      {"vmm_start_time", record.vmm_start_time},
                      {"claimed_unix_nanos", record.claimed_unix_nanos},
                      {"guest_mem_total_bytes", record.guest_mem_total_bytes},
                      {"state_path", record.state_path},
                      {"boot_seconds", record.boot_seconds}});
  }
  const json root = {{"version", kClaimsVersion}, {"claims", claims}};
  return root.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

absl::Status NodeState::LoadClaims() {
  const std::string path = config_.paths.state_dir + "/claims.json";
  if (!fs_.Exists(path)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string text, fs_.Read(path, 256 * kMiB));
  const json root = json::parse(text, nullptr, false);
  if (root.is_discarded() || !root.is_object() || !root.contains("claims") || !root["claims"].is_array()) {
    return MakeStatus(absl::StatusCode::kDataLoss,
                      "{}: damaged; move it away when no Lamina pod runs on this node", path);
  }
  if (root.value("version", 0) > kClaimsVersion) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "{}: written by a newer laminad; left untouched",
                      path);
  }
  MutexLock lock(mutex_);
  for (const json& item : root["claims"]) {
    if (!item.is_object() || !item.contains("id") || !item["id"].is_string()) continue;
    Record record;
    record.claim.ParseFromString(Unhex(item.value("claim", "")));
    record.generation = item.value("generation", uint64_t{0});
    record.vmm_pid = item.value("vmm_pid", int64_t{0});
    record.vmm_start_time = item.value("vmm_start_time", uint64_t{0});
    record.claimed_unix_nanos = item.value("claimed_unix_nanos", int64_t{0});
    record.guest_mem_total_bytes = item.value("guest_mem_total_bytes", uint64_t{0});
    record.state_path = item.value("state_path", "");
    if (item.contains("boot_seconds") && item["boot_seconds"].is_object()) {
      for (const auto& [phase, seconds] : item["boot_seconds"].items()) {
        if (seconds.is_number()) record.boot_seconds[phase] = seconds.get<double>();
      }
    }
    const std::string id = item["id"].get<std::string>();
    ledger_.Restore({id, record.generation, record.claim.bytes(), 0, record.vmm_pid != 0});
    records_[id] = std::move(record);
  }
  return absl::OkStatus();
}

bool NodeState::VmmLivesLocked(const Record& record) const {
  if (record.vmm_pid != 0 && host_.Alive(record.vmm_pid, record.vmm_start_time)) return true;
  // QEMU may run although its start was never told: the shim writes its pid down first.
  const persist::StateStore store(fs_, config_.paths.state_dir);
  const absl::StatusOr<persist::SandboxState> state = store.Load(record.claim.sandbox_id());
  return state.ok() && state->vmm.pid != 0 && host_.Alive(state->vmm.pid, state->vmm.start_time);
}

bool NodeState::LivesLocked(const Record& record) const {
  return host_.Alive(record.claim.shim_pid(), record.claim.shim_start_time()) || VmmLivesLocked(record);
}

absl::Status NodeState::DropLocked(const std::string& id) {
  const auto it = records_.find(id);
  if (it == records_.end()) return absl::OkStatus();
  Record record = std::move(it->second);
  records_.erase(it);
  const absl::Status saved = SaveClaimsLocked();
  if (!saved.ok()) {
    records_[id] = std::move(record);
    return saved;
  }
  ledger_.Release(id, 0);
  return layers_->ReleaseSandbox(id);
}

absl::Status NodeState::Reconcile() {
  std::vector<std::string> dead;
  std::set<std::string> living;
  RETURN_IF_ERROR(Observe(dead, living));
  for (const std::string& id : dead) {
    const Turn turn(*this, id);
    MutexLock lock(mutex_);
    const auto it = records_.find(id);
    if (it == records_.end() || LivesLocked(it->second)) continue;  // released, or taken over, meanwhile
    LogInfo("sandbox {}: neither its VM nor its shim lives; its claim is dropped", id);
    RETURN_IF_ERROR(DropLocked(id));
  }
  if (!ready_) RETURN_IF_ERROR(layers_->RetainSandboxes(living));
  const uint64_t available = host_.MemAvailableBytes();
  ledger_.SetPressure(available < config_.memory.min_available_bytes
                          ? fmt::format("the node has {} MiB of memory left, less than memory.min_available "
                                        "of {}: others than Lamina use it",
                                        available / kMiB, FormatBytes(config_.memory.min_available_bytes))
                          : "");
  ready_ = true;
  layers_->LogProgress();
  return absl::OkStatus();
}

absl::Status NodeState::Observe(std::vector<std::string>& dead, std::set<std::string>& living) {
  MutexLock lock(mutex_);
  // VMs that live though their claim was lost: what is observed counts.
  persist::StateStore store(fs_, config_.paths.state_dir);
  ASSIGN_OR_RETURN(const std::vector<std::string> ids, store.List());
  for (const std::string& id : ids) {
    const auto known = records_.find(id);
    if (known != records_.end() && known->second.vmm_pid != 0) continue;
    const absl::StatusOr<persist::SandboxState> state = store.Load(id);
    if (!state.ok() && state.status().code() != absl::StatusCode::kNotFound) {
      // Its VM may run: nobody else gets its layers' regions.
      living.insert(id);
      if (!ready_) LogWarning("{}", Message(state.status()));
    }
    if (!state.ok() || state->vmm.pid == 0 || !host_.Alive(state->vmm.pid, state->vmm.start_time)) continue;
    if (known != records_.end()) {  // it started, and nobody said so
      if (!ledger_.Bind(id, known->second.generation).ok()) continue;
      known->second.vmm_pid = state->vmm.pid;
      known->second.vmm_start_time = state->vmm.start_time;
      continue;
    }
    Record record;
    record.claim.set_sandbox_id(id);
    record.claim.set_pod_name(state->pod_name);
    record.claim.set_pod_namespace(state->pod_namespace);
    record.claim.set_pod_uid(state->pod_uid);
    record.claim.set_bytes(state->claim_bytes);
    record.claim.set_shim_pid(state->shim.pid);
    record.claim.set_shim_start_time(state->shim.start_time);
    record.claim.mutable_sizing()->set_vcpus(state->vcpus);
    record.claim.mutable_sizing()->set_memory_bytes(state->memory_bytes);
    record.generation = state->claim_generation;
    record.vmm_pid = state->vmm.pid;
    record.vmm_start_time = state->vmm.start_time;
    record.state_path = store.Path(id);
    ledger_.Restore({id, record.generation, record.claim.bytes(), 0, true});
    records_[id] = std::move(record);
  }
  for (const auto& [id, record] : records_) {
    if (!LivesLocked(record)) {
      dead.push_back(id);
      continue;
    }
    living.insert(id);
    if (record.vmm_pid != 0) ledger_.SetResident(id, host_.ResidentBytes(record.vmm_pid));
  }
  return absl::OkStatus();
}

std::string NodeState::DomainOf(const laminad::v1::ClaimRequest& claim) const {
  if (config_.layers.sharing == "node") return "node";
  if (config_.layers.sharing == "namespace" && !claim.pod_namespace().empty())
    return "namespace " + claim.pod_namespace();
  return "pod " + claim.sandbox_id();
}

absl::StatusOr<laminad::v1::ClaimResponse> NodeState::Claim(const laminad::v1::ClaimRequest& request) {
  const auto start = clock_.Now();
  if (!persist::IsSafeId(request.sandbox_id()))
    return InvalidArgument("claim: sandbox id \"{}\" is not safe", request.sandbox_id());
  if (!ready_) {
    metrics_.CountRefusal("not_ready");
    return absl::UnavailableError("laminad has not reconciled with the running VMs yet");
  }
  laminad::v1::ClaimResponse response;
  {
    const Turn turn(*this, request.sandbox_id());
    MutexLock lock(mutex_);
    // Its death is what ends an unstarted claim: an owner that cannot be seen would lose it at once.
    if (!host_.Alive(request.shim_pid(), request.shim_start_time())) {
      metrics_.CountRefusal("invalid");
      return MakeStatus(
          absl::StatusCode::kFailedPrecondition,
          "claim {}: its shim (pid {}) is not seen to live; laminad must share the host's pid namespace",
          request.sandbox_id(), request.shim_pid());
    }
    // What an owner that is gone held under this id is not in its way.
    if (const auto known = records_.find(request.sandbox_id());
        known != records_.end() && !LivesLocked(known->second)) {
      RETURN_IF_ERROR(DropLocked(request.sandbox_id()));
    }
    const absl::StatusOr<uint64_t> generation = ledger_.Claim(request.sandbox_id(), request.bytes());
    if (!generation.ok()) {
      const auto code = generation.status().code();
      metrics_.CountRefusal(code == absl::StatusCode::kResourceExhausted ? "no_memory"
                            : code == absl::StatusCode::kUnavailable     ? "pressure"
                                                                         : "invalid");
      return generation.status();
    }
    Record& record = records_[request.sandbox_id()];
    const bool repeated = record.generation == *generation;
    record.claim = request;
    record.generation = *generation;
    if (!repeated) record.claimed_unix_nanos = UnixNanos(clock_.Wall());
    if (const absl::Status saved = SaveClaimsLocked(); !saved.ok()) {
      if (!repeated) {
        records_.erase(request.sandbox_id());
        ledger_.Release(request.sandbox_id(), *generation);
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
  RETURN_IF_ERROR(ledger_.Bind(request.sandbox_id(), request.generation()));
  Record& record = records_[request.sandbox_id()];
  record.vmm_pid = request.vmm_pid();
  record.vmm_start_time = request.vmm_start_time();
  return SaveClaimsLocked();
}

absl::Status NodeState::Ready(const laminad::v1::ReadyRequest& request) {
  const Turn turn(*this, request.sandbox_id());
  MutexLock lock(mutex_);
  const auto it = records_.find(request.sandbox_id());
  if (it == records_.end())
    return MakeStatus(absl::StatusCode::kNotFound, "sandbox {} has no claim", request.sandbox_id());
  if (it->second.generation != request.generation()) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "sandbox {}: claim generation {} is stale, {} is current", request.sandbox_id(),
                      request.generation(), it->second.generation);
  }
  if (!it->second.boot_seconds.empty()) return absl::OkStatus();  // said before: counted before
  it->second.guest_mem_total_bytes = request.guest_mem_total_bytes();
  it->second.state_path = request.state_path();
  it->second.boot_seconds = {request.phase_seconds().begin(), request.phase_seconds().end()};
  metrics_.ObserveBoot(it->second.boot_seconds);
  return SaveClaimsLocked();
}

absl::Status NodeState::Retarget(const laminad::v1::RetargetRequest& request) {
  const Turn turn(*this, request.sandbox_id());
  MutexLock lock(mutex_);
  const auto it = records_.find(request.sandbox_id());
  if (it == records_.end())
    return MakeStatus(absl::StatusCode::kNotFound, "sandbox {} has no claim", request.sandbox_id());
  if (it->second.generation != request.generation()) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "sandbox {}: claim generation {} is stale, {} is current", request.sandbox_id(),
                      request.generation(), it->second.generation);
  }
  if (request.bytes() == 0) return InvalidArgument("retarget {}: 0 bytes", request.sandbox_id());
  const uint64_t before = it->second.claim.bytes();
  // Memory is taken before it is written down, and written down before it is given back: a crash between
  // never promises it twice.
  const bool grows = request.bytes() > before;
  if (grows) RETURN_IF_ERROR(ledger_.Retarget(request.sandbox_id(), request.generation(), request.bytes()));
  it->second.claim.set_bytes(request.bytes());
  if (const absl::Status saved = SaveClaimsLocked(); !saved.ok()) {
    it->second.claim.set_bytes(before);
    if (grows) ledger_.Retarget(request.sandbox_id(), request.generation(), before).IgnoreError();
    return saved;
  }
  return grows ? absl::OkStatus()
               : ledger_.Retarget(request.sandbox_id(), request.generation(), request.bytes());
}

absl::StatusOr<laminad::v1::PlaceLayersResponse> NodeState::PlaceLayers(
    const laminad::v1::PlaceLayersRequest& request) {
  layers::PlaceRequest place;
  {
    MutexLock lock(mutex_);
    const auto it = records_.find(request.sandbox_id());
    if (it == records_.end() || it->second.generation != request.generation()) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition,
                        "place layers: sandbox {} has no claim of generation {}", request.sandbox_id(),
                        request.generation());
    }
    place.sandbox_id = request.sandbox_id();
    place.domain = DomainOf(it->second.claim);
  }
  for (const laminad::v1::Arena& arena : request.attached()) {
    uint64_t& window = place.attached_arenas[arena.id()];
    window = std::max(window, arena.bytes());
  }
  place.free_arena_slots = request.free_arena_slots();
  for (const std::string& source : request.sources()) {
    if (source.empty() || source[0] != '/')
      return InvalidArgument("place layers: \"{}\" is not an absolute path", source);
  }
  laminad::v1::PlaceLayersResponse response;
  const absl::StatusOr<std::vector<layers::Placement>> result =
      layers_->PlaceAll(place, {request.sources().begin(), request.sources().end()});
  if (!result.ok()) LogWarning("place layers for sandbox {}: {}", place.sandbox_id, Message(result.status()));
  for (const layers::Placement& placed : result.ok() ? *result : std::vector<layers::Placement>()) {
    laminad::v1::Placement* out = response.add_placements();
    out->set_layer_id(placed.layer_id);
    out->set_kind(placed.kind == layers::PlacementKind::kVpmem ? laminad::v1::Placement::VPMEM
                                                               : laminad::v1::Placement::SCSI);
    if (placed.kind == layers::PlacementKind::kVpmem) {
      out->mutable_arena()->set_id(placed.arena_id);
      out->mutable_arena()->set_path(placed.arena_path);
      out->mutable_arena()->set_bytes(placed.arena_bytes);
    }
    out->set_offset(placed.offset);
    out->set_payload_bytes(placed.payload_bytes);
    out->set_held_bytes(placed.held_bytes);
    out->set_image_path(placed.image_path);
    out->set_reused(placed.reused);
    out->set_why_scsi(placed.why_scsi);
    out->set_convert_seconds(placed.convert_seconds);
    out->set_copy_seconds(placed.copy_seconds);
  }
  MutexLock lock(mutex_);
  // A release that came while layers were being made did not see them.
  if (records_.count(request.sandbox_id()) == 0) {
    RETURN_IF_ERROR(layers_->ReleaseSandbox(request.sandbox_id()));
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "place layers: sandbox {} was released meanwhile", request.sandbox_id());
  }
  RETURN_IF_ERROR(Annotate(result.status(), "place layers for sandbox " + request.sandbox_id()));
  return response;
}

absl::Status NodeState::Release(const laminad::v1::ReleaseRequest& request) {
  if (!persist::IsSafeId(request.sandbox_id()))
    return InvalidArgument("release: sandbox id \"{}\" is not safe", request.sandbox_id());
  if (!ready_) return absl::UnavailableError("laminad has not reconciled with the running VMs yet");
  const Turn turn(*this, request.sandbox_id());
  MutexLock lock(mutex_);
  const auto it = records_.find(request.sandbox_id());
  if (it != records_.end() && request.generation() != 0 && request.generation() != it->second.generation)
    return absl::OkStatus();
  Record unknown;
  unknown.claim.set_sandbox_id(request.sandbox_id());
  const Record& record = it == records_.end() ? unknown : it->second;
  if (VmmLivesLocked(record)) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "release {}: its VM (pid {}) still lives",
                      request.sandbox_id(), record.vmm_pid);
  }
  // Without a claim too: the release before may have got no further than that.
  return it == records_.end() ? layers_->ReleaseSandbox(request.sandbox_id())
                              : DropLocked(request.sandbox_id());
}

absl::StatusOr<uint64_t> NodeState::GcLayers(uint64_t keep_bytes) { return layers_->Gc(keep_bytes); }
absl::StatusOr<layers::PackResult> NodeState::PackLayers() { return layers_->Pack(); }

lamina::node::v1::StatusResponse NodeState::status() const {
  const sizing::LedgerTotals totals = ledger_.totals();
  lamina::node::v1::StatusResponse out;
  out.set_version(LAMINA_VERSION);
  out.set_ready(ready_);
  out.set_pressure(ledger_.pressure());
  out.set_capacity_bytes(totals.capacity_bytes);
  out.set_claimed_bytes(totals.claimed_bytes);
  out.set_available_bytes(totals.available_bytes);
  out.set_resident_bytes(totals.resident_bytes);
  out.set_sandboxes(totals.entries);
  return out;
}

lamina::node::v1::SandboxList NodeState::sandboxes() const {
  MutexLock lock(mutex_);
  lamina::node::v1::SandboxList list;
  for (const auto& [id, record] : records_) {
    const laminad::v1::SizingReport& sizing = record.claim.sizing();
    auto* out = list.add_sandboxes();
    out->set_id(id);
    out->set_namespace_(record.claim.pod_namespace());
    out->set_pod(record.claim.pod_name());
    out->set_uid(record.claim.pod_uid());
    out->set_vcpus(sizing.vcpus());
    out->set_vcpus_exact(sizing.vcpus_exact());
    out->set_vcpus_if_rounded_per_container(sizing.vcpus_if_rounded_per_container());
    out->set_memory_bytes(sizing.memory_bytes());
    out->set_limit_cpus(static_cast<double>(sizing.limit_nano_cpus()) / 1e9);
    out->set_limit_memory_bytes(sizing.limit_memory_bytes());
    out->set_overhead_cpus(static_cast<double>(sizing.overhead_nano_cpus()) / 1e9);
    out->set_overhead_memory_bytes(sizing.overhead_memory_bytes());
    out->set_guest_mem_total_bytes(record.guest_mem_total_bytes);
    out->set_vmm_pid(record.vmm_pid);
    out->set_state_path(record.state_path);
    for (const std::string& reason : sizing.reasons()) out->add_reasons(reason);
    for (const auto& [phase, seconds] : record.boot_seconds) (*out->mutable_boot_seconds())[phase] = seconds;
  }
  return list;
}

lamina::node::v1::ClaimList NodeState::claims() const {
  MutexLock lock(mutex_);
  const sizing::LedgerTotals totals = ledger_.totals();
  lamina::node::v1::ClaimList list;
  list.set_capacity_bytes(totals.capacity_bytes);
  list.set_claimed_bytes(totals.claimed_bytes);
  list.set_available_bytes(totals.available_bytes);
  const int64_t now = UnixNanos(clock_.Wall());
  for (const sizing::LedgerEntry& entry : ledger_.entries()) {
    auto* out = list.add_claims();
    out->set_id(entry.id);
    out->set_generation(entry.generation);
    out->set_target_bytes(entry.target_bytes);
    out->set_resident_bytes(entry.resident_bytes);
    out->set_outstanding_bytes(
        entry.target_bytes > entry.resident_bytes ? entry.target_bytes - entry.resident_bytes : 0);
    out->set_bound(entry.bound);
    const auto it = records_.find(entry.id);
    if (it == records_.end()) continue;
    out->set_namespace_(it->second.claim.pod_namespace());
    out->set_pod(it->second.claim.pod_name());
    out->set_age_seconds(static_cast<double>(now - it->second.claimed_unix_nanos) / 1e9);
  }
  return list;
}

lamina::node::v1::ArenaList NodeState::arenas() const {
  lamina::node::v1::ArenaList list;
  for (const layers::ArenaInfo& arena : layers_->arenas()) {
    auto* out = list.add_arenas();
    out->set_id(arena.id);
    out->set_domain(arena.domain);
    out->set_path(arena.path);
    out->set_bytes(arena.bytes);
    out->set_held_bytes(arena.held_bytes);
    out->set_payload_bytes(arena.payload_bytes);
    out->set_regions(arena.regions.size());
  }
  return list;
}

lamina::node::v1::LayerList NodeState::layers() const {
  lamina::node::v1::LayerList list;
  for (const layers::ArenaInfo& arena : layers_->arenas()) {
    for (const layers::RegionInfo& region : arena.regions) {
      auto* out = list.add_layers();
      out->set_id(region.layer_id);
      out->set_kind("vpmem");
      out->set_arena(arena.id);
      out->set_offset(region.offset);
      out->set_held_bytes(region.held_bytes);
      out->set_payload_bytes(region.payload_bytes);
      for (const std::string& user : region.users) out->add_users(user);
    }
  }
  for (const layers::DiskInfo& disk : layers_->disks()) {
    auto* out = list.add_layers();
    out->set_id(disk.layer_id);
    out->set_kind("scsi");
    out->set_held_bytes(disk.bytes);
    out->set_payload_bytes(disk.bytes);
    out->set_image_path(disk.path);
    out->set_why_scsi(disk.why);
    for (const std::string& user : disk.users) out->add_users(user);
  }
  return list;
}

std::string NodeState::MetricsText() const {
  metrics::NodeSample sample;
  const sizing::LedgerTotals totals = ledger_.totals();
  sample.version = LAMINA_VERSION;
  sample.capacity_bytes = totals.capacity_bytes;
  sample.claimed_bytes = totals.claimed_bytes;
  sample.available_bytes = totals.available_bytes;
  sample.resident_bytes = totals.resident_bytes;
  sample.reserve_bytes = config_.memory.reserve_bytes;
  sample.carve_out_bytes = config_.memory.carve_out_bytes;
  const lamina::node::v1::SandboxList all = sandboxes();
  for (const auto& s : all.sandboxes()) {
    sample.sandboxes.push_back({s.pod(), s.namespace_(), s.id(), s.memory_bytes(), s.limit_memory_bytes(),
                                s.overhead_memory_bytes(), static_cast<double>(s.vcpus()), s.limit_cpus(),
                                s.overhead_cpus()});
  }
  for (const layers::ArenaInfo& arena : layers_->arenas()) {
    sample.arenas.push_back({arena.id, arena.bytes, arena.held_bytes, arena.payload_bytes});
  }
  const layers::StoreCounters counters = layers_->counters();
  sample.layers_placed_vpmem = counters.placed_vpmem;
  sample.layers_placed_scsi = counters.placed_scsi;
  sample.layer_conversions = counters.conversions;
  sample.layer_conversion_failures = counters.conversion_failures;
  sample.layer_reuses = counters.reuses;
  sample.layer_evictions = counters.evictions;
  sample.layers_rebuilt = counters.rebuilt;
  for (const layers::ConversionInfo& one : layers_->conversions()) {
    ++sample.layers_converting;
    sample.converting_bytes += one.bytes;
    sample.converting_seconds = std::max(sample.converting_seconds, one.seconds);
  }
  return metrics_.Text(sample);
}

}  // namespace lamina::node
