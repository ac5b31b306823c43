#include "cri/containers.h"

#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <future>

#include "base/clock.h"
#include "base/file_system.h"
#include "base/log.h"
#include "base/safe_id.h"
#include "base/status.h"
#include "cri/messages.h"
#include "cri/pod_files.h"
#include "cri/rootfs.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"

namespace lamina::cri {
namespace {

using persist::ContainerLife;
using persist::ContainerState;
using persist::SandboxState;
using std::chrono::steady_clock;

constexpr std::chrono::seconds kAgentTimeout{30}, kSignalTimeout{10};
constexpr std::chrono::seconds kDrainTimeout{5}, kExecDrainTimeout{1};
constexpr std::chrono::minutes kPlaceTimeout{2};  // of a caller without a deadline; the kubelet's own default
constexpr std::chrono::milliseconds kCancelAgain{100}, kInstant{1};
constexpr size_t kWatchStackBytes = 64 * 1024;
// Of a process: stdin twice, stdout, stderr. The rest is for connections, files and what a call needs for a
// moment.
constexpr size_t kStreamDescriptors = 4, kOtherDescriptors = 128;

agent::v1::ProcessRequest Name(const std::string& id, const std::string& exec_id) {
  agent::v1::ProcessRequest request;
  request.set_container_id(id);
  request.set_exec_id(exec_id);
  return request;
}

std::string Words(const std::string& id, const std::string& exec_id) {
  return exec_id.empty() ? "container " + id : "exec " + exec_id + " of container " + id;
}

ExitInfo Now(uint32_t status) { return {status, UnixNanos(Clock::Real().Wall())}; }

bool Passed(Deadline deadline) { return deadline && steady_clock::now() >= *deadline; }

void LogIfNot(const absl::Status& status, const std::string& what) {
  if (!status.ok()) LogWarning("{}: {}", what, Message(status));
}

}  // namespace

Containers::~Containers() { GiveUp(); }

absl::StatusOr<std::shared_ptr<Containers::Container>> Containers::FindContainer(
    const std::string& id) const {
  const auto it = containers_.find(id);
  if (it == containers_.end()) return MakeStatus(absl::StatusCode::kNotFound, "container {}: not found", id);
  return it->second;
}

absl::StatusOr<std::shared_ptr<Process>> Containers::Find(const std::string& id,
                                                          const std::string& exec_id) const {
  MutexLock lock(mutex_);
  ASSIGN_OR_RETURN(const std::shared_ptr<Container> container, FindContainer(id));
  if (container->creating)
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "container {} is still being created", id);
  if (exec_id.empty()) return container->init;
  const auto exec = container->execs.find(exec_id);
  if (exec == container->execs.end())
    return MakeStatus(absl::StatusCode::kNotFound, "exec {} of container {}: not found", exec_id, id);
  return exec->second;
}

bool Containers::empty() const {
  MutexLock lock(mutex_);
  return containers_.empty();
}

// The caller's turn to create, with the container in the map; on error it is not.
absl::StatusOr<std::shared_ptr<Containers::Container>> Containers::Enter(const std::string& id,
                                                                         const std::string& bundle,
                                                                         Deadline deadline) {
  auto container = std::make_shared<Container>();
  container->id = id;
  container->bundle = bundle;
  MutexLock lock(mutex_);
  if (stopped_) return MakeStatus(absl::StatusCode::kFailedPrecondition, "its sandbox does not run");
  RETURN_IF_ERROR(RoomForStreams());
  if (!containers_.emplace(id, container).second)
    return MakeStatus(absl::StatusCode::kAlreadyExists, "it exists already");
  while (turn_ != nullptr && !stopped_ && !container->given_up && !Passed(deadline)) AwaitChange(deadline);
  absl::Status status;
  if (stopped_ || container->given_up) status = absl::CancelledError("it was given up before it was created");
  if (Passed(deadline))
    status = absl::DeadlineExceededError("others of its pod were being created until its deadline");
  if (!status.ok()) {
    containers_.erase(id);
    changed_.NotifyAll();
    return status;
  }
  turn_ = container.get();
  return container;
}

void Containers::Leave(const Container& container, bool created) {
  MutexLock lock(mutex_);
  turn_ = nullptr;
  if (!created) containers_.erase(container.id);
  changed_.NotifyAll();
}

absl::Status Containers::WantedLocked(const Container& container, Deadline deadline) const {
  if (container.given_up || stopped_)
    return absl::CancelledError("it was deleted, or its pod stopped, while it was being created");
  if (Passed(deadline))
    return absl::DeadlineExceededError("its creation took longer than its caller waits; all is undone");
  return absl::OkStatus();
}

absl::Status Containers::Wanted(const Container& container, Deadline deadline) const {
  MutexLock lock(mutex_);
  return WantedLocked(container, deadline);
}

// From here on it is a container like any other; whoever gave up must not find it later.
absl::Status Containers::Accept(Container& container, const std::shared_ptr<Process>& init,
                                Deadline deadline) {
  MutexLock lock(mutex_);
  RETURN_IF_ERROR(WantedLocked(container, deadline));
  container.init = init;
  container.creating = false;
  return absl::OkStatus();
}

// A creation that waits for laminad is told so again and again: it may begin to wait an instant after it was
// given up.
void Containers::AwaitChange(Deadline deadline) {
  const auto again = steady_clock::now() + kCancelAgain;
  if (changed_.WaitUntil(mutex_, deadline ? std::min(*deadline, again) : again)) return;
  if (turn_ != nullptr && (turn_->given_up || stopped_)) parts_.layers.CancelPlacing();
}

absl::StatusOr<uint32_t> Containers::Create(const containerd::CreateTaskRequest& request, Deadline deadline) {
  const std::string what = "container " + request.id();
  if (!IsSafeId(request.id()))
    return InvalidArgument("container id \"{}\" is not safe as a file name", request.id());
  if (!request.checkpoint().empty())
    return absl::UnimplementedError("containers are not restored from checkpoints");
  auto entered = Enter(request.id(), request.bundle(), deadline);
  if (!entered.ok()) return Annotate(entered.status(), what);
  Container& container = **entered;
  absl::StatusOr<std::shared_ptr<Process>> init = Make(request, deadline, container);
  if (init.ok()) {
    absl::Status status = RecordCreated(container, **init);
    if (status.ok()) status = Accept(container, *init, deadline);
    if (!status.ok()) {
      (*init)->stdio->DrainAndClose(std::chrono::milliseconds(0));
      init = status;
    }
  }
  if (!init.ok()) {
    LogIfNot(Undo(container), what + ": not all is undone");
    parts_.size.Dismiss(request.id());
    LogIfNot(parts_.book.Record([&](SandboxState& state) { state.containers.erase(request.id()); }), what);
  }
  Leave(container, init.ok());
  if (!init.ok()) return Annotate(init.status(), what);
  return (*init)->pid();
}

absl::StatusOr<std::shared_ptr<Process>> Containers::Make(const containerd::CreateTaskRequest& request,
                                                          Deadline deadline, Container& container) {
  const std::string config = request.bundle() + "/config.json";
  ASSIGN_OR_RETURN(std::string json, FileSystem::Real().Read(config, 8 << 20));
  if (parts_.book.Look([](const SandboxState& state) { return state.has_pod_files; })) {
    ASSIGN_OR_RETURN(json, WithPodFiles(json, config));
  }
  ASSIGN_OR_RETURN(const BundleSpec spec, ParseSpec(json, config));
  ASSIGN_OR_RETURN(const std::vector<std::string> layers, LayerSources(request.rootfs(), ReadHostMounts()));

  std::vector<std::string> ended;
  {
    // One that has ended needs nothing, even if it has not been deleted yet.
    MutexLock lock(mutex_);
    for (const auto& [id, other] : containers_) {
      if (other->init != nullptr && other->init->status() == ProcessStatus::kStopped) ended.push_back(id);
    }
  }
  RETURN_IF_ERROR(parts_.size.Admit(request.id(), spec, ended));
  RETURN_IF_ERROR(Wanted(container, deadline));
  const auto place_time = deadline.value_or(steady_clock::now() + kPlaceTimeout) - steady_clock::now();
  RETURN_IF_ERROR(parts_.layers.Mount(
      request.id(), layers, std::max<std::chrono::nanoseconds>(place_time, kInstant), container.layers));
  RETURN_IF_ERROR(Wanted(container, deadline));
  agent::v1::CreateContainerRequest create;
  RETURN_IF_ERROR(AddDisks(spec, UpperDir(request.rootfs()), container, create));
  RETURN_IF_ERROR(Wanted(container, deadline));
  PodVolumes::Taken& volumes = container.volumes;
  RETURN_IF_ERROR(parts_.volumes.Take(spec, volumes));
  ASSIGN_OR_RETURN(const std::string guest_spec, GuestSpec(json, volumes.sources, volumes.notes));
  for (const std::string& note : volumes.notes) LogInfo("container {}: {}", request.id(), note);
  const StdioPaths paths{request.stdin(), request.stdout(), request.stderr(), request.terminal()};
  ASSIGN_OR_RETURN(const std::shared_ptr<ProcessStdio> stdio, OpenStdio(paths));
  create.set_container_id(request.id());
  create.set_spec_json(guest_spec);
  for (const std::string& id : container.layers.ids) create.add_layer_ids(id);
  for (const std::string& path : volumes.host_mounts) create.add_host_mounts(path);
  create.set_terminal(request.terminal());
  create.set_stdin_stream(stdio->ids().in);
  create.set_stdout_stream(stdio->ids().out);
  create.set_stderr_stream(stdio->ids().err);
  const auto created = ttrpc::Call(parts_.vm.agent(), guest::kCreateContainer, create, kAgentTimeout);
  if (!created.ok()) {
    stdio->DrainAndClose(std::chrono::milliseconds(0));
    return created.status();
  }
  auto init = std::make_shared<Process>(request.id(), "", request.bundle(), paths, stdio);
  init->SetPid(created->pid());
  return init;
}

absl::Status Containers::AddDisks(const BundleSpec& spec, const std::string& upper_dir, Container& container,
                                  agent::v1::CreateContainerRequest& create) {
  const Config::Volumes& config = parts_.config.volumes;
  const bool wanted = config.root == "disk" && !spec.read_only_root;
  if (wanted && upper_dir.empty())
    LogInfo("container {}: its snapshotter has no folder for what it writes: it stays in memory",
            container.id);
  if (wanted && !upper_dir.empty()) {
    agent::v1::MountVolumeRequest volume;
    volume.set_name(RootVolume(container.id));
    volume.mutable_root()->set_mode(0700);
    const std::string image = upper_dir + "/" + kRootImage;
    RETURN_IF_ERROR(Annotate(parts_.disks.AddImage(image, {.bytes = config.root_size_bytes}, volume),
                             "its writable layer"));
    container.root_disk = volume.name();
    create.set_writable_volume(volume.name());
  }
  create.set_guest_devices(spec.all_devices);
  for (const SpecDevice& device : spec.block_devices) {
    absl::StatusOr<std::string> name = parts_.disks.AddDevice(device.number, device.writable());
    if (!name.ok()) return Annotate(name.status(), "device " + device.path);
    container.devices.push_back(*name);
    *create.add_devices() = GuestDevice(device, *name);
  }
  return absl::OkStatus();
}

absl::Status Containers::RecordCreated(const Container& container, const Process& init) {
  SandboxState held;
  parts_.layers.FillIn(held);
  return parts_.book.Change([&](SandboxState& state) {
    state.arenas = held.arenas;
    state.layers = held.layers;
    state.volumes = parts_.volumes.Known();
    persist::ContainerState& kept = state.containers[container.id];
    kept.id = container.id;
    kept.bundle = container.bundle;
    kept.layer_ids = container.layers.ids;
    kept.mounts = container.volumes.names;
    kept.disks = container.layers.images;
    kept.devices = container.devices;
    kept.pid = init.pid();
    kept.stdin_path = init.paths.in;
    kept.stdout_path = init.paths.out;
    kept.stderr_path = init.paths.err;
    kept.terminal = init.paths.terminal;
    kept.first_stream = init.stdio->first_id();
  });
}

std::shared_ptr<Process> Containers::RestoreInit(const ContainerState& held) {
  next_stream_ = std::max(next_stream_.load(), held.first_stream + 3);
  const StdioPaths paths{held.stdin_path, held.stdout_path, held.stderr_path, held.terminal};
  const bool ended = held.life == ContainerLife::kStopped;
  auto stdio = ProcessStdio::Open(ended ? StdioPaths() : paths, parts_.vm.mux(), held.first_stream);
  if (!stdio.ok()) {
    LogWarning("container {}: it goes on without its streams: {}", held.id, Message(stdio.status()));
    stdio = ProcessStdio::Open({}, parts_.vm.mux(), held.first_stream);
  }
  auto init = std::make_shared<Process>(held.id, "", held.bundle, paths, stdio.value_or(nullptr));
  init->SetPid(held.pid);
  if (held.life == ContainerLife::kRunning) init->SetRunning(held.pid);
  if (ended) init->SetExited({held.exit_status, held.exit_unix_nanos});
  return init;
}

absl::Status Containers::Restore(const SandboxState& state) {
  for (const auto& [id, held] : state.containers) {
    auto container = std::make_shared<Container>();
    container->id = id;
    container->bundle = held.bundle;
    container->creating = false;
    container->layers.ids = held.layer_ids;
    container->layers.images = held.disks;
    container->volumes.names = held.mounts;
    container->devices = held.devices;
    for (const persist::PodDisk& disk : state.disks) {
      if (disk.name == RootVolume(id)) container->root_disk = disk.name;
    }
    container->init = RestoreInit(held);
    {
      MutexLock lock(mutex_);
      containers_[id] = container;
    }
    if (held.life != ContainerLife::kRunning) continue;
    RETURN_IF_ERROR(threads_.Start(kWatchStackBytes, [this, process = container->init] { Watch(process); }));
  }
  return absl::OkStatus();
}

absl::Status Containers::Undo(const Container& container) {
  absl::Status first;
  if (parts_.vm.Alive().ok()) {
    first.Update(ttrpc::Call(parts_.vm.agent(), guest::kDeleteProcess, Name(container.id, ""), kAgentTimeout)
                     .status());
    first.Update(parts_.layers.Unmount(container.layers));
  }
  if (!container.root_disk.empty()) first.Update(parts_.disks.Remove(container.root_disk));
  for (const std::string& device : container.devices) first.Update(parts_.disks.Remove(device));
  first.Update(parts_.volumes.GiveBack(container.volumes.names));
  return first;
}

absl::Status Containers::RoomForStreams() const {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  size_t processes = 1;
  for (const auto& [id, container] : containers_) processes += 1 + container->execs.size();
  if (processes * kStreamDescriptors + kOtherDescriptors <= limit.rlim_cur) return absl::OkStatus();
  return MakeStatus(absl::StatusCode::kResourceExhausted,
                    "the pod has {} processes with streams already, and its shim may open {} descriptors",
                    processes - 1, limit.rlim_cur);
}

absl::StatusOr<std::shared_ptr<ProcessStdio>> Containers::OpenStdio(const StdioPaths& paths) {
  auto stdio = ProcessStdio::Open(paths, parts_.vm.mux(), next_stream_.fetch_add(3));
  const absl::Status port = parts_.vm.mux().status();
  // No container of such a guest can be heard any more.
  if (!port.ok() && parts_.vm.Alive().ok()) parts_.end_pod(Annotate(port, "the guest's stdio port is lost"));
  return stdio;
}

absl::Status Containers::CreateExec(const containerd::ExecProcessRequest& request, Deadline deadline) {
  if (!IsSafeId(request.exec_id()))
    return InvalidArgument("exec id \"{}\" is not safe as a file name", request.exec_id());
  RETURN_IF_ERROR(Find(request.id(), "").status());
  const StdioPaths paths{request.stdin(), request.stdout(), request.stderr(), request.terminal()};
  ASSIGN_OR_RETURN(const std::shared_ptr<ProcessStdio> stdio, OpenStdio(paths));
  const auto exec = std::make_shared<Process>(request.id(), request.exec_id(), "", paths, stdio);
  absl::Status status;
  {
    MutexLock lock(mutex_);
    const auto it = containers_.find(request.id());
    status = it == containers_.end() ? absl::NotFoundError("the container is gone") : RoomForStreams();
    if (status.ok() && !it->second->execs.emplace(request.exec_id(), exec).second)
      status = absl::AlreadyExistsError("it exists already");
  }
  if (!status.ok()) {
    stdio->DrainAndClose(std::chrono::milliseconds(0));
    return Annotate(status, Words(request.id(), request.exec_id()));
  }
  agent::v1::ExecCreateRequest create;
  create.set_container_id(request.id());
  create.set_exec_id(request.exec_id());
  create.set_process_json(request.spec().value());
  create.set_terminal(request.terminal());
  create.set_stdin_stream(stdio->ids().in);
  create.set_stdout_stream(stdio->ids().out);
  create.set_stderr_stream(stdio->ids().err);
  status = ttrpc::Call(parts_.vm.agent(), guest::kExecCreate, create, kAgentTimeout).status();
  if (status.ok() && Passed(deadline))
    status = absl::DeadlineExceededError("its creation took longer than its caller waits; it is undone");
  if (!status.ok()) {
    DeleteExec(request.id(), request.exec_id(), *exec).status().IgnoreError();
    return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> Containers::Start(const std::string& id, const std::string& exec_id) {
  ASSIGN_OR_RETURN(const std::shared_ptr<Process> process, Find(id, exec_id));
  if (process->status() == ProcessStatus::kRunning) return process->pid();
  if (!process->ClaimStart()) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "{} has ended already, or is being started",
                      Words(id, exec_id));
  }
  // The watcher first: without one nobody would hear of the end.
  const auto may_watch = std::make_shared<std::promise<bool>>();
  absl::Status status = threads_.Start(kWatchStackBytes, [this, process, may_watch] {
    if (may_watch->get_future().get()) Watch(process);
  });
  uint32_t pid = 0;
  if (status.ok()) {
    const auto started =
        ttrpc::Call(parts_.vm.agent(), guest::kStartProcess, Name(id, exec_id), kAgentTimeout);
    status = started.status();
    if (status.ok()) {
      pid = started->pid();
      process->SetRunning(pid);
    }
    may_watch->set_value(status.ok());
  }
  if (!status.ok()) {
    // containerd deletes what did not start; until then it has ended, as with other runtimes.
    process->SetExited(Now(127));
    return status;
  }
  if (exec_id.empty()) {
    LogIfNot(parts_.book.Record([&](SandboxState& state) {
      if (const auto it = state.containers.find(id); it != state.containers.end())
        it->second.life = ContainerLife::kRunning;
    }),
             Words(id, ""));
  }
  return pid;
}

std::vector<std::string> Containers::VolumesOf(const std::string& id) const {
  MutexLock lock(mutex_);
  const auto it = containers_.find(id);
  return it == containers_.end() ? std::vector<std::string>() : it->second->volumes.names;
}

void Containers::Watch(const std::shared_ptr<Process>& process) {
  const bool is_init = process->exec_id.empty();
  const auto answer = ttrpc::Call(parts_.vm.agent(), guest::kWaitProcess,
                                  Name(process->container_id, process->exec_id), ttrpc::kNoTimeout);
  // With the VM all have ended, and EndAll says so.
  if (!answer.ok() && (!parts_.vm.Alive().ok() || !parts_.vm.agent().connected())) return;
  ExitInfo exit = Now(255);
  if (answer.ok()) {
    exit.status = std::min<uint32_t>(answer->exit_status(), 255);
    if (process->stdio != nullptr) process->stdio->DrainAndClose(is_init ? kDrainTimeout : kExecDrainTimeout);
    // The kubelet reads it once it hears of the end.
    if (is_init) parts_.volumes.BringLogs(VolumesOf(process->container_id));
    if (answer->oom_killed() && is_init) {
      // Before the exit: containerd learns the reason from this event and the exit from Wait's answer.
      containerd::TaskOOM oom;
      oom.set_container_id(process->container_id);
      parts_.events.Publish("/tasks/oom", "containerd.events.TaskOOM", oom);
      parts_.events.Flush(std::chrono::seconds(2));
    }
  } else {
    LogWarning("{}: its end is not known: {}", Words(process->container_id, process->exec_id),
               Message(answer.status()));
  }
  // Whoever waits for the end does not wait for the disk.
  if (process->SetExited(exit)) Publish(*process, exit);
  if (is_init) {
    LogIfNot(parts_.book.Record([&](SandboxState& state) {
      if (const auto it = state.containers.find(process->container_id); it != state.containers.end()) {
        it->second.life = ContainerLife::kStopped;
        it->second.exit_status = exit.status;
        it->second.exit_unix_nanos = exit.unix_nanos;
      }
    }),
             Words(process->container_id, ""));
  }
}

void Containers::Publish(const Process& process, ExitInfo exit) {
  const auto pid = parts_.book.Look([](const SandboxState& state) { return state.vmm.pid; });
  parts_.events.Publish("/tasks/exit", "containerd.events.TaskExit",
                        ExitEvent(process, static_cast<uint32_t>(pid), exit));
}

absl::Status Containers::Signal(const std::string& id, const std::string& exec_id, uint32_t signal,
                                bool all) {
  if (signal == SIGKILL && exec_id.empty()) {
    MutexLock lock(mutex_);
    ASSIGN_OR_RETURN(const std::shared_ptr<Container> container, FindContainer(id));
    if (container->creating) {
      container->given_up = true;
      if (turn_ == container.get()) parts_.layers.CancelPlacing();
      changed_.NotifyAll();
      return absl::OkStatus();
    }
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<Process> process, Find(id, exec_id));
  if (process->status() == ProcessStatus::kStopped) return absl::NotFoundError("process already finished");
  const bool created = process->status() == ProcessStatus::kCreated;
  if (created && !exec_id.empty()) {
    process->SetExited(Now(137));
    return absl::OkStatus();
  }
  agent::v1::SignalProcessRequest request;
  request.set_container_id(id);
  request.set_exec_id(exec_id);
  request.set_signal(signal);
  request.set_all(all);
  const bool promise = signal == SIGKILL && exec_id.empty() && !created;
  absl::Status watched;
  if (promise && process->ClaimKill()) {
    watched = threads_.Start(kWatchStackBytes, [this, process] { WatchKill(process); });
  }
  const absl::Status status =
      ttrpc::Call(parts_.vm.agent(), guest::kSignalProcess, request, kSignalTimeout).status();
  if (created && signal == SIGKILL) process->SetExited(Now(137));
  if (!watched.ok()) WatchKill(process);
  // Whatever the guest says, the container will have ended within the bound.
  return promise ? absl::OkStatus() : status;
}

void Containers::WatchKill(const std::shared_ptr<Process>& process) {
  if (process->WaitExitUntil(steady_clock::now() + parts_.kill_bound)) return;
  parts_.end_pod(MakeStatus(absl::StatusCode::kDeadlineExceeded,
                            "container {} was killed, and its guest did not tell of its end within {} s",
                            process->container_id,
                            std::chrono::duration_cast<std::chrono::seconds>(parts_.kill_bound).count()));
}

absl::StatusOr<ExitInfo> Containers::DeleteExec(const std::string& id, const std::string& exec_id,
                                                Process& process) {
  const ExitInfo exit = process.exit().value_or(Now(0));
  if (parts_.vm.Alive().ok()) {
    LogIfNot(ttrpc::Call(parts_.vm.agent(), guest::kDeleteProcess, Name(id, exec_id), kAgentTimeout).status(),
             Words(id, exec_id));
  }
  process.stdio->DrainAndClose(std::chrono::milliseconds(0));
  MutexLock lock(mutex_);
  if (const auto it = containers_.find(id); it != containers_.end()) it->second->execs.erase(exec_id);
  return exit;
}

absl::StatusOr<Deleted> Containers::Delete(const std::string& id, const std::string& exec_id,
                                           Deadline deadline) {
  {
    MutexLock lock(mutex_);
    ASSIGN_OR_RETURN(const std::shared_ptr<Container> container, FindContainer(id));
    if (container->creating || container->deleting) {
      container->given_up = true;
      if (turn_ == container.get()) parts_.layers.CancelPlacing();
      changed_.NotifyAll();
      const auto gone = [&]() REQUIRES(mutex_) {
        const auto it = containers_.find(id);
        return it == containers_.end() || it->second != container;
      };
      while (!gone() && !Passed(deadline)) AwaitChange(deadline);
      if (!gone())
        return MakeStatus(absl::StatusCode::kDeadlineExceeded, "container {}: it is still being undone", id);
      return Deleted{0, Now(137)};
    }
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<Process> process, Find(id, exec_id));
  if (process->status() == ProcessStatus::kRunning)
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "{} still runs: stop it first",
                      Words(id, exec_id));
  Deleted deleted{process->pid(), process->exit().value_or(Now(0))};
  if (!exec_id.empty()) {
    ASSIGN_OR_RETURN(deleted.exit, DeleteExec(id, exec_id, *process));
    return deleted;
  }
  RETURN_IF_ERROR(DeleteContainer(id));
  process->SetExited(deleted.exit);
  return deleted;
}

absl::Status Containers::DeleteContainer(const std::string& id) {
  std::shared_ptr<Container> container;
  std::vector<std::shared_ptr<Process>> processes;
  {
    MutexLock lock(mutex_);
    ASSIGN_OR_RETURN(container, FindContainer(id));
    if (container->deleting)
      return MakeStatus(absl::StatusCode::kAborted, "container {} is being deleted already", id);
    container->deleting = true;
    for (const auto& [exec_id, exec] : container->execs) processes.push_back(exec);
    processes.push_back(container->init);
  }
  for (const auto& process : processes) process->stdio->DrainAndClose(std::chrono::milliseconds(0));
  LogIfNot(Undo(*container), "container " + id + ": not all is undone, the VM's end will");
  // The file may be gone with the sandbox already; then nothing is written.
  LogIfNot(parts_.book.Record([&](SandboxState& state) {
    state.containers.erase(id);
    state.volumes = parts_.volumes.Known();
  }),
           "container " + id);
  parts_.size.Dismiss(id);
  MutexLock lock(mutex_);
  containers_.erase(id);
  changed_.NotifyAll();
  return absl::OkStatus();
}

absl::Status Containers::ResizeTerminal(const containerd::ResizePtyRequest& request) {
  RETURN_IF_ERROR(Find(request.id(), request.exec_id()).status());
  agent::v1::ResizeTerminalRequest resize;
  resize.set_container_id(request.id());
  resize.set_exec_id(request.exec_id());
  resize.set_width(request.width());
  resize.set_height(request.height());
  return ttrpc::Call(parts_.vm.agent(), guest::kResizeTerminal, resize, kAgentTimeout).status();
}

absl::Status Containers::CloseStdin(const std::string& id, const std::string& exec_id) {
  ASSIGN_OR_RETURN(const std::shared_ptr<Process> process, Find(id, exec_id));
  process->stdio->CloseStdin();
  return absl::OkStatus();
}

absl::Status Containers::Update(const std::string& id, const std::string& resources_json) {
  RETURN_IF_ERROR(Find(id, "").status());
  return parts_.size.Update(id, resources_json);
}

absl::StatusOr<agent::v1::ContainerStats> Containers::Stats(const std::string& id) {
  RETURN_IF_ERROR(Find(id, "").status());
  return ttrpc::Call(parts_.vm.agent(), guest::kContainerStats, Name(id, ""), kAgentTimeout);
}

absl::StatusOr<std::vector<uint32_t>> Containers::Pids(const std::string& id) {
  RETURN_IF_ERROR(Find(id, "").status());
  ASSIGN_OR_RETURN(const agent::v1::PidsResponse pids,
                   ttrpc::Call(parts_.vm.agent(), guest::kPids, Name(id, ""), kAgentTimeout));
  return std::vector<uint32_t>(pids.pids().begin(), pids.pids().end());
}

void Containers::GiveUp() {
  {
    MutexLock lock(mutex_);
    stopped_ = true;
    changed_.NotifyAll();
  }
  parts_.layers.CancelPlacing();
}

void Containers::EndAll(ExitInfo exit) {
  GiveUp();
  std::vector<std::shared_ptr<Process>> processes;
  {
    MutexLock lock(mutex_);
    while (turn_ != nullptr) AwaitChange(std::nullopt);
    for (const auto& [id, container] : containers_) {
      for (const auto& [exec_id, exec] : container->execs) processes.push_back(exec);
      if (container->init != nullptr) processes.push_back(container->init);
    }
  }
  for (const auto& process : processes) {
    if (process->SetExited(exit)) Publish(*process, exit);
  }
}

}  // namespace lamina::cri
