// The containers of a sandbox: layers, volumes, processes.
#include <google/protobuf/message_lite.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <set>

#include "base/clock.h"
#include "base/file_system.h"
#include "base/log.h"
#include "base/status.h"
#include "base/ttrpc/thread.h"
#include "cri/cleanup.h"
#include "cri/rootfs.h"
#include "cri/sandbox.h"
#include "cri/volumes.h"

namespace lamina::cri {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kAgentTimeout{30};
constexpr std::chrono::seconds kMountTimeout{60};
constexpr std::chrono::minutes kPlaceTimeout{10};
constexpr std::chrono::seconds kDrainTimeout{5};
constexpr size_t kWatchStackBytes = 64 * 1024;

double Seconds(steady_clock::time_point from, steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

agent::v1::ProcessRequest Name(const std::string& id, const std::string& exec_id) {
  agent::v1::ProcessRequest request;
  request.set_container_id(id);
  request.set_exec_id(exec_id);
  return request;
}

}  // namespace

absl::Status Sandbox::MountLayers(const containerd::CreateTaskRequest& request, Container& container) {
  ASSIGN_OR_RETURN(const std::vector<std::string> sources, LayerSources(request.rootfs(), ReadHostMounts()));
  laminad::v1::PlaceLayersRequest place;
  laminad::v1::PlaceLayersResponse placed;
  place.set_sandbox_id(id_);
  for (const std::string& source : sources) place.add_sources(source);
  const std::vector<vmm::ArenaDevice> attached = vm_->arenas();
  for (const vmm::ArenaDevice& arena : attached) {
    place.add_attached()->set_id(arena.id);
    place.mutable_attached(place.attached_size() - 1)->set_bytes(arena.bytes);
  }
  // One port stays for the first SCSI controller.
  const size_t ports = vm_->free_ports();
  const size_t left = config_.layers.max_arenas_per_pod > attached.size()
                          ? config_.layers.max_arenas_per_pod - attached.size()
                          : 0;
  place.set_free_arena_slots(static_cast<uint32_t>(std::min(ports > 0 ? ports - 1 : 0, left)));
  {
    MutexLock lock(mutex_);
    place.set_generation(state_.claim_generation);
  }
  const auto begin = steady_clock::now();
  RETURN_IF_ERROR(CallLaminad("PlaceLayers", place, &placed, kPlaceTimeout));
  const auto in_place = steady_clock::now();
  if (placed.placements_size() != place.sources_size()) {
    return MakeStatus(absl::StatusCode::kInternal, "laminad placed {} of {} layers", placed.placements_size(),
                      place.sources_size());
  }
  agent::v1::MountLayersRequest mount;
  std::set<std::string> seen;
  for (const laminad::v1::Placement& placement : placed.placements()) {
    // An image may have the same layer twice; all that the lower one shows, the upper one shows above it.
    if (!seen.insert(placement.layer_id()).second) continue;
    container.layer_ids.push_back(placement.layer_id());
    persist::PlacedLayer mounted;  // by another container of the pod: it stays where it is
    {
      MutexLock lock(mutex_);
      const uint32_t others = layer_users_[placement.layer_id()]++;
      const auto known = std::find_if(state_.layers.begin(), state_.layers.end(),
                                      [&](const auto& l) { return l.id == placement.layer_id(); });
      if (others > 0 && known != state_.layers.end()) mounted = *known;
    }
    if (!mounted.id.empty()) {
      for (const std::string& path : {mounted.image_path, mounted.tree_path}) {
        if (path.empty()) continue;
        ASSIGN_OR_RETURN(const uint64_t reservation, vm_->scsi().Reserve(path));
        container.disks.push_back(reservation);
      }
      continue;
    }
    agent::v1::Layer* layer = mount.add_layers();
    layer->set_id(placement.layer_id());
    persist::PlacedLayer record{placement.layer_id(),      "",
                                placement.arena().id(),    placement.offset(),
                                placement.payload_bytes(), placement.image_path(),
                                placement.tree().path(),   ""};
    if (placement.kind() == laminad::v1::Placement::VPMEM) {
      ASSIGN_OR_RETURN(
          const std::string path,
          vm_->AttachArena({placement.arena().id(), placement.arena().path(), placement.arena().bytes()},
                           placement.offset() + placement.payload_bytes()));
      layer->mutable_pmem()->set_pci_path(path);
      layer->mutable_pmem()->set_offset(placement.offset());
      layer->mutable_pmem()->set_size(placement.payload_bytes());
      record.kind = "vpmem";
      record.device = path;
    } else if (placement.kind() == laminad::v1::Placement::SCSI) {
      ASSIGN_OR_RETURN(*layer->mutable_scsi(),
                       AttachDisk(placement.image_path(), placement.payload_bytes(), container));
      if (placement.has_tree()) {
        ASSIGN_OR_RETURN(*layer->mutable_verity()->mutable_tree(),
                         AttachDisk(placement.tree().path(), placement.tree().bytes(), container));
        layer->mutable_verity()->set_root_hash(placement.tree().root_hash());
      }
      record.kind = "scsi";
      record.device = fmt::format("{} lun {}", layer->scsi().pci_path(), layer->scsi().lun());
      LogInfo("layer {} comes as a disk{}: {}", placement.layer_id(),
              placement.has_tree() ? " with a hash tree, root " + placement.tree().root_hash() : "",
              placement.why_scsi());
    } else {
      return absl::InternalError("laminad answered a layer without a place");
    }
    MutexLock lock(mutex_);
    const bool known = std::any_of(state_.layers.begin(), state_.layers.end(),
                                   [&](const auto& l) { return l.id == record.id; });
    if (!known) state_.layers.push_back(record);
    std::set<std::string> arenas;
    for (const vmm::ArenaDevice& arena : vm_->arenas()) arenas.insert(arena.id);
    state_.arenas.assign(arenas.begin(), arenas.end());
  }
  const auto attached_all = steady_clock::now();
  double waited = 0;
  if (mount.layers_size() > 0) {
    agent::v1::MountLayersResponse mounted;
    RETURN_IF_ERROR(
        Annotate(CallAgent("MountLayers", mount, &mounted, kMountTimeout), "mount the image's layers"));
    for (const agent::v1::LayerResult& result : mounted.results()) waited += result.wait_device_seconds();
  }
  LogInfo(
      "container {} has its layers: placed in {:.3f} s, attached in {:.3f} s, mounted in {:.3f} s, of which "
      "the guest waited {:.3f} s for devices",
      container.id, Seconds(begin, in_place), Seconds(in_place, attached_all),
      Seconds(attached_all, steady_clock::now()), waited);
  return absl::OkStatus();
}

absl::StatusOr<agent::v1::ScsiDisk> Sandbox::AttachDisk(const std::string& image, uint64_t bytes,
                                                        Container& container) {
  ASSIGN_OR_RETURN(const uint64_t reservation, vm_->scsi().Reserve(image));
  container.disks.push_back(reservation);
  ASSIGN_OR_RETURN(const vmm::DiskPlace place, vm_->scsi().Map(reservation));
  agent::v1::ScsiDisk disk;
  disk.set_pci_path(place.pci_path);
  disk.set_target(place.target);
  disk.set_lun(place.lun);
  disk.set_size(bytes);
  return disk;
}

std::vector<std::string> Sandbox::DisksLocked(const Container& container) const {
  std::vector<std::string> images;
  for (const persist::PlacedLayer& layer : state_.layers) {
    const auto& ids = container.layer_ids;
    if (std::find(ids.begin(), ids.end(), layer.id) == ids.end()) continue;
    for (const std::string& path : {layer.image_path, layer.tree_path}) {
      if (!path.empty()) images.push_back(path);
    }
  }
  return images;
}

absl::Status Sandbox::UnmountLayers(const Container& container) {
  agent::v1::UnmountLayersRequest request;
  {
    MutexLock lock(mutex_);
    for (const std::string& id :
         std::set<std::string>(container.layer_ids.begin(), container.layer_ids.end())) {
      const auto it = layer_users_.find(id);
      if (it == layer_users_.end() || --it->second > 0) continue;
      layer_users_.erase(it);
      request.add_ids(id);
      state_.layers.erase(std::remove_if(state_.layers.begin(), state_.layers.end(),
                                         [&](const auto& l) { return l.id == id; }),
                          state_.layers.end());
    }
  }
  absl::Status status;
  if (request.ids_size() > 0) status = CallAgent("UnmountLayers", request, nullptr, kMountTimeout);
  // A disk that the guest has not let go of stays until the VM's end.
  if (!status.ok()) return status;
  for (const uint64_t reservation : container.disks) status.Update(vm_->scsi().Unmap(reservation));
  return status;
}

absl::StatusOr<std::map<size_t, std::string>> Sandbox::BindVolumes(const BundleSpec& spec,
                                                                   Container& container) {
  std::map<size_t, std::string> sources;
  for (size_t i = 0; i < spec.mounts.size(); ++i) {
    const SpecMount& mount = spec.mounts[i];
    if (!mount.is_bind()) continue;
    if (mount.destination == "/dev/shm") {
      sources[i] = "/run/lamina/shm";  // the pod's, in the guest's memory
      continue;
    }
    const std::string name = fmt::format("{}-{}", container.id, i);
    RETURN_IF_ERROR(BindVolume(RuntimeDir(config_, id_) + "/shared", name, mount.source,
                               {mount.read_only(), mount.follows_host()}));
    container.volumes.push_back(name);
    sources[i] = "/run/lamina/shared/" + name;
  }
  return sources;
}

// Everything that CreateContainer may have done, in reverse.
absl::Status Sandbox::UndoContainer(const Container& container) {
  absl::Status first;
  const auto note = [&](const absl::Status& status) {
    if (!status.ok() && first.ok()) first = status;
  };
  if (vm_->Alive().ok()) {
    note(CallAgent("DeleteProcess", Name(container.id, ""), nullptr, kAgentTimeout));
    note(UnmountLayers(container));
  }
  for (const std::string& volume : container.volumes)
    note(UnbindVolume(RuntimeDir(config_, id_) + "/shared", volume));
  return first;
}

absl::StatusOr<std::shared_ptr<ProcessStdio>> Sandbox::OpenStdio(const StdioPaths& paths) {
  return ProcessStdio::Open(paths, *mux_, next_stream_.fetch_add(3));
}

absl::StatusOr<uint32_t> Sandbox::CreateContainer(const containerd::CreateTaskRequest& request) {
  MutexLock build(build_mutex_);
  {
    MutexLock lock(mutex_);
    if (init_ == nullptr || stopping_)
      return MakeStatus(absl::StatusCode::kFailedPrecondition, "container {}: its sandbox does not run",
                        request.id());
    if (containers_.count(request.id()) != 0)
      return MakeStatus(absl::StatusCode::kAlreadyExists, "container {} exists already", request.id());
  }
  if (!persist::IsSafeId(request.id()))
    return InvalidArgument("container id \"{}\" is not safe as a file name", request.id());
  if (!request.checkpoint().empty())
    return absl::UnimplementedError("containers are not restored from checkpoints");
  const std::string config = request.bundle() + "/config.json";
  ASSIGN_OR_RETURN(std::string json, FileSystem::Real().Read(config, 8 << 20));
  if (const std::string files = PodFilesDir(RuntimeDir(config_, id_)); FileSystem::Real().Exists(files)) {
    ASSIGN_OR_RETURN(json, WithPodFiles(json, files, config));
  }
  ASSIGN_OR_RETURN(const BundleSpec spec, ParseSpec(json, config));

  auto container = std::make_shared<Container>();
  container->id = request.id();
  container->bundle = request.bundle();
  const StdioPaths paths{request.stdin(), request.stdout(), request.stderr(), request.terminal()};
  std::shared_ptr<ProcessStdio> stdio;
  RETURN_IF_ERROR(Annotate(AdmitContainer(request.id(), spec), "container " + request.id()));
  const auto make = [&]() -> absl::StatusOr<uint32_t> {
    RETURN_IF_ERROR(MountLayers(request, *container));
    ASSIGN_OR_RETURN(const auto sources, BindVolumes(spec, *container));
    std::vector<std::string> notes;
    ASSIGN_OR_RETURN(const std::string guest_spec, GuestSpec(json, sources, notes));
    for (const std::string& note : notes) LogInfo("container {}: {}", request.id(), note);
    ASSIGN_OR_RETURN(stdio, OpenStdio(paths));
    agent::v1::CreateContainerRequest create;
    create.set_container_id(request.id());
    create.set_spec_json(guest_spec);
    for (const std::string& id : container->layer_ids) create.add_layer_ids(id);
    create.set_terminal(request.terminal());
    create.set_stdin_stream(stdio->ids().in);
    create.set_stdout_stream(stdio->ids().out);
    create.set_stderr_stream(stdio->ids().err);
    agent::v1::CreateContainerResponse created;
    RETURN_IF_ERROR(CallAgent("CreateContainer", create, &created, kAgentTimeout));
    return created.pid();
  };
  absl::StatusOr<uint32_t> pid = make();
  if (pid.ok()) {
    container->init = std::make_shared<Process>(request.id(), "", paths, stdio);
    container->init->SetPid(*pid);
    {
      MutexLock lock(mutex_);
      containers_[request.id()] = container;
      state_.containers[request.id()] = {
          request.id(),       request.bundle(),        "created", 0, container->layer_ids,
          container->volumes, DisksLocked(*container), *pid};
    }
    if (const absl::Status saved = Save(); !saved.ok()) {
      pid = saved;
      MutexLock lock(mutex_);
      containers_.erase(request.id());
      state_.containers.erase(request.id());
    }
  }
  if (!pid.ok()) {
    if (stdio != nullptr) stdio->DrainAndClose(std::chrono::milliseconds(0));
    const absl::Status undone = UndoContainer(*container);
    if (!undone.ok()) LogWarning("container {}: not all is undone: {}", request.id(), Message(undone));
    DismissContainer(request.id());
    Save().IgnoreError();
    return Annotate(pid.status(), "container " + request.id());
  }
  return *pid;
}

absl::Status Sandbox::CreateExec(const containerd::ExecProcessRequest& request) {
  if (!persist::IsSafeId(request.exec_id()))
    return InvalidArgument("exec id \"{}\" is not safe as a file name", request.exec_id());
  std::shared_ptr<Container> container;
  {
    MutexLock lock(mutex_);
    const auto it = containers_.find(request.id());
    if (it == containers_.end())
      return MakeStatus(absl::StatusCode::kNotFound, "container {}: not found", request.id());
    container = it->second;
    if (container->execs.count(request.exec_id()) != 0)
      return MakeStatus(absl::StatusCode::kAlreadyExists, "exec {} exists already", request.exec_id());
  }
  const StdioPaths paths{request.stdin(), request.stdout(), request.stderr(), request.terminal()};
  ASSIGN_OR_RETURN(const std::shared_ptr<ProcessStdio> stdio, OpenStdio(paths));
  agent::v1::ExecCreateRequest create;
  create.set_container_id(request.id());
  create.set_exec_id(request.exec_id());
  create.set_process_json(request.spec().value());
  create.set_terminal(request.terminal());
  create.set_stdin_stream(stdio->ids().in);
  create.set_stdout_stream(stdio->ids().out);
  create.set_stderr_stream(stdio->ids().err);
  const absl::Status status = CallAgent("ExecCreate", create, nullptr, kAgentTimeout);
  if (!status.ok()) {
    stdio->DrainAndClose(std::chrono::milliseconds(0));
    return status;
  }
  MutexLock lock(mutex_);
  container->execs[request.exec_id()] =
      std::make_shared<Process>(request.id(), request.exec_id(), paths, stdio);
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> Sandbox::StartProcess(const std::string& id, const std::string& exec_id) {
  ASSIGN_OR_RETURN(const std::shared_ptr<Process> process, Find(id, exec_id));
  if (process->status() == ProcessStatus::kRunning) return process->pid();
  if (process->status() == ProcessStatus::kStopped) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "{} has ended already",
                      exec_id.empty() ? "container " + id : "exec " + exec_id);
  }
  if (id == id_) {
    process->SetRunning(process->pid());
    return process->pid();
  }
  agent::v1::StartProcessResponse started;
  const absl::Status status = CallAgent("StartProcess", Name(id, exec_id), &started, kAgentTimeout);
  if (!status.ok()) {
    // containerd deletes what did not start; until then it has ended, as with other runtimes.
    process->SetExited({127, UnixNanos(Clock::Real().Wall())});
    return status;
  }
  process->SetRunning(started.pid());
  if (exec_id.empty()) {
    {
      MutexLock lock(mutex_);
      if (const auto it = state_.containers.find(id); it != state_.containers.end())
        it->second.state = "running";
    }
    const absl::Status saved = Save();
    if (!saved.ok()) LogWarning("container {}: {}", id, Message(saved));
  }
  RETURN_IF_ERROR(ttrpc::StartThread(kWatchStackBytes, [this, process] { WatchProcess(process); }));
  return started.pid();
}

void Sandbox::WatchProcess(std::shared_ptr<Process> process) {
  agent::v1::WaitProcessResponse answer;
  const absl::Status status =
      CallAgent("WaitProcess", Name(process->container_id, process->exec_id), &answer, ttrpc::kNoTimeout);
  ExitInfo exit{255, UnixNanos(Clock::Real().Wall())};
  if (status.ok()) {
    exit.status = std::min<uint32_t>(answer.exit_status(), 255);
    if (process->stdio != nullptr)
      process->stdio->DrainAndClose(process->exec_id.empty() ? kDrainTimeout : std::chrono::seconds(1));
    if (answer.oom_killed() && process->exec_id.empty()) {
      // Before the exit: containerd learns the reason from this event and the exit from Wait's answer.
      containerd::TaskOOM oom;
      oom.set_container_id(process->container_id);
      events_.Publish("/tasks/oom", "containerd.events.TaskOOM", oom);
      events_.Flush(std::chrono::seconds(2));
    }
  } else if (!vm_->Alive().ok()) {
    return;  // WatchVm tells of all of them
  }
  if (process->exec_id.empty()) {
    {
      MutexLock lock(mutex_);
      if (const auto it = state_.containers.find(process->container_id); it != state_.containers.end()) {
        it->second.state = "stopped";
        it->second.exit_status = exit.status;
      }
    }
    const absl::Status saved = Save();
    if (!saved.ok()) LogWarning("container {}: {}", process->container_id, Message(saved));
  }
  if (process->SetExited(exit)) PublishExit(*process, exit);
}

absl::Status Sandbox::Signal(const std::string& id, const std::string& exec_id, uint32_t signal, bool all) {
  ASSIGN_OR_RETURN(const std::shared_ptr<Process> process, Find(id, exec_id));
  if (process->status() == ProcessStatus::kStopped) return absl::NotFoundError("process already finished");
  if (id == id_) return StopVm();
  if (process->status() == ProcessStatus::kCreated && !exec_id.empty()) {
    process->SetExited({137, UnixNanos(Clock::Real().Wall())});
    return absl::OkStatus();
  }
  agent::v1::SignalProcessRequest request;
  request.set_container_id(id);
  request.set_exec_id(exec_id);
  request.set_signal(signal);
  request.set_all(all);
  const bool created = process->status() == ProcessStatus::kCreated;
  const absl::Status status = CallAgent("SignalProcess", request, nullptr, kAgentTimeout);
  if (created && signal == 9) process->SetExited({137, UnixNanos(Clock::Real().Wall())});
  return status;
}

absl::StatusOr<ExitInfo> Sandbox::DeleteProcess(const std::string& id, const std::string& exec_id,
                                                uint32_t& pid) {
  ASSIGN_OR_RETURN(const std::shared_ptr<Process> process, Find(id, exec_id));
  pid = process->pid();
  if (process->status() == ProcessStatus::kRunning) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "{} still runs: stop it first",
                      exec_id.empty() ? "container " + id : "exec " + exec_id);
  }
  const ExitInfo exit = process->exit().value_or(ExitInfo{0, UnixNanos(Clock::Real().Wall())});
  if (!exec_id.empty()) {
    if (vm_->Alive().ok())
      CallAgent("DeleteProcess", Name(id, exec_id), nullptr, kAgentTimeout).IgnoreError();
    process->stdio->DrainAndClose(std::chrono::milliseconds(0));
    MutexLock lock(mutex_);
    if (const auto it = containers_.find(id); it != containers_.end()) it->second->execs.erase(exec_id);
    return exit;
  }
  MutexLock build(build_mutex_);
  if (id == id_) {
    RETURN_IF_ERROR(StopVm());
    process->WaitExit();
    persist::SandboxState state;
    {
      MutexLock lock(mutex_);
      removed_ = true;
      state = state_;
    }
    RETURN_IF_ERROR(CleanUpSandbox(config_, state));
    MutexLock lock(mutex_);
    init_.reset();
    return process->exit().value_or(exit);
  }
  std::shared_ptr<Container> container;
  {
    MutexLock lock(mutex_);
    const auto it = containers_.find(id);
    if (it == containers_.end())
      return MakeStatus(absl::StatusCode::kNotFound, "container {}: not found", id);
    container = it->second;
  }
  if (process->stdio != nullptr) process->stdio->DrainAndClose(std::chrono::milliseconds(0));
  const absl::Status undone = UndoContainer(*container);
  if (!undone.ok()) LogWarning("container {}: not all is undone, the VM's end will: {}", id, Message(undone));
  process->SetExited(exit);
  {
    MutexLock lock(mutex_);
    containers_.erase(id);
    state_.containers.erase(id);
  }
  DismissContainer(id);
  // The state may be gone with the sandbox already.
  if (vm_->Alive().ok()) RETURN_IF_ERROR(Save());
  return exit;
}

absl::Status Sandbox::Resize(const containerd::ResizePtyRequest& request) {
  RETURN_IF_ERROR(Find(request.id(), request.exec_id()).status());
  agent::v1::ResizeTerminalRequest resize;
  resize.set_container_id(request.id());
  resize.set_exec_id(request.exec_id());
  resize.set_width(request.width());
  resize.set_height(request.height());
  return CallAgent("ResizeTerminal", resize, nullptr, kAgentTimeout);
}

absl::Status Sandbox::CloseStdin(const std::string& id, const std::string& exec_id) {
  ASSIGN_OR_RETURN(const std::shared_ptr<Process> process, Find(id, exec_id));
  if (process->stdio != nullptr) process->stdio->CloseStdin();
  return absl::OkStatus();
}

agent::v1::ContainerStats Sandbox::HostStats() const {
  agent::v1::ContainerStats stats;
  std::vector<int64_t> pids;
  {
    MutexLock lock(mutex_);
    stats.set_memory_limit_bytes(state_.claim_bytes);
    pids = {state_.vmm.pid, state_.virtiofsd.pid};
  }
  stats.set_pids_limit(UINT64_MAX);
  const auto add = [&](const char* key, uint64_t bytes) { (*stats.mutable_memory_stat())[key] += bytes; };
  const auto tick_usec = 1'000'000 / static_cast<uint64_t>(sysconf(_SC_CLK_TCK));
  for (const int64_t pid : pids) {
    const std::string proc = fmt::format("/proc/{}/", pid);
    const std::string stat = FileSystem::Real().Read(proc + "stat", 4096).value_or("");
    const std::string status = FileSystem::Real().Read(proc + "status", 65536).value_or("");
    uint64_t user = 0, system = 0, minor = 0, major = 0;
    // The command's name may hold anything: fields count from its end.
    if (pid <= 0 || stat.rfind(')') == std::string::npos ||
        sscanf(stat.c_str() + stat.rfind(')') + 1,
               " %*c %*d %*d %*d %*d %*d %*u %" SCNu64 " %*u %" SCNu64 " %*u %" SCNu64 " %" SCNu64, &minor,
               &major, &user, &system) != 4) {
      continue;
    }
    const auto kilobytes = [&](const char* key) {
      const size_t at = status.find(key);
      return at == std::string::npos ? 0 : strtoull(status.c_str() + at + strlen(key), nullptr, 10) * 1024;
    };
    stats.set_pids_current(stats.pids_current() + 1);
    stats.set_cpu_user_usec(stats.cpu_user_usec() + user * tick_usec);
    stats.set_cpu_system_usec(stats.cpu_system_usec() + system * tick_usec);
    add("pgfault", minor + major);
    add("pgmajfault", major);
    add("anon", kilobytes("RssAnon:"));
    // virtiofsd maps the guest's memory, which is QEMU's already. Mapped files are arenas, which all VMs
    // share.
    if (pid == pids[0]) add("shmem", kilobytes("RssShmem:"));
  }
  stats.set_cpu_usage_usec(stats.cpu_user_usec() + stats.cpu_system_usec());
  uint64_t held = 0;
  for (const char* key : {"anon", "shmem"}) held += (*stats.mutable_memory_stat())[key];
  stats.set_memory_usage_bytes(held);
  return stats;
}

absl::StatusOr<agent::v1::ContainerStats> Sandbox::Stats(const std::string& id) {
  RETURN_IF_ERROR(Find(id, "").status());
  if (id == id_) return HostStats();
  agent::v1::ContainerStats stats;
  RETURN_IF_ERROR(CallAgent("ContainerStats", Name(id, ""), &stats, kAgentTimeout));
  return stats;
}

absl::StatusOr<std::vector<uint32_t>> Sandbox::Pids(const std::string& id) {
  ASSIGN_OR_RETURN(const std::shared_ptr<Process> process, Find(id, ""));
  if (id == id_) return std::vector<uint32_t>{process->pid()};
  agent::v1::PidsResponse pids;
  RETURN_IF_ERROR(CallAgent("Pids", Name(id, ""), &pids, kAgentTimeout));
  return std::vector<uint32_t>(pids.pids().begin(), pids.pids().end());
}

}  // namespace lamina::cri
