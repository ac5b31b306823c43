#include "guest/agent/containers.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/file_system.h"
#include "base/log.h"
#include "base/safe_id.h"
#include "base/status.h"
#include "guest/agent/files.h"
#include "guest/agent/in_volume.h"
#include "guest/agent/mount_points.h"
#include "guest/agent/overlay.h"
#include "guest/agent/own_devices.h"
#include "guest/agent/system.h"
#include "proto/agent.pb.h"

namespace lamina::guest {
namespace {

template <typename Request>
TaskStreams StreamsOf(const Request& request) {
  // A terminal has one output.
  return {request.terminal(), request.stdin_stream(), request.stdout_stream(),
          request.terminal() ? 0 : request.stderr_stream()};
}

absl::Status MakeDirectory(const std::string& path) {
  if (mkdir(path.c_str(), 0711) != 0 && errno != EEXIST) return ErrnoStatus(errno, "mkdir " + path);
  return absl::OkStatus();
}

}  // namespace

// Before crun copies this mount namespace: what each container entered for itself would be files of its own.
// And what is entered by a read-only mount is read-only for ever.
absl::Status ContainerTable::EnterShared(const std::vector<std::string>& names,
                                         const agent::v1::CreateContainerRequest& request) const {
  const std::string shared = options_.root + "/shared";
  for (const std::string& name : names) RETURN_IF_ERROR(EnterFolder(shared, name));
  for (const std::string& path : request.host_mounts()) {
    if (!IsBelow(path, shared)) return InvalidArgument("\"{:.160}\" is not below {}", path, shared);
    // The host may have unmounted it, the guest may have put something in its way.
    const absl::Status entered = EnterFolder(shared, path.substr(shared.size() + 1));
    if (!entered.ok()) LogWarning("a mount of the host's: {}", Message(entered));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ContainerDevice>> ContainerTable::DevicesOf(
    const agent::v1::CreateContainerRequest& request) const {
  std::vector<ContainerDevice> devices;
  for (const agent::v1::ContainerDevice& asked : request.devices()) {
    ASSIGN_OR_RETURN(const std::string node, volumes_.DeviceOf(asked.volume()));
    struct stat info {};
    if (stat(node.c_str(), &info) != 0) return ErrnoStatus(errno, "device " + asked.path());
    if (asked.access().empty()) return InvalidArgument("device {}: no access to it", asked.path());
    devices.push_back({asked.path(), major(info.st_rdev), minor(info.st_rdev), asked.access(), asked.mode(),
                       asked.uid(), asked.gid()});
  }
  if (!request.guest_devices()) return devices;
  ASSIGN_OR_RETURN(const std::vector<OwnDevice> own, OwnDevices());
  for (const OwnDevice& device : own) {
    devices.push_back(
        {device.path, device.major, device.minor, "", device.mode, device.uid, device.gid, device.block});
  }
  return devices;
}

absl::StatusOr<std::string> ContainerTable::WritableVolume(const std::string& name) const {
  if (name.empty()) return name;
  RETURN_IF_ERROR(CheckSafeId(name, "volume of the root"));
  const std::string path = volumes_.MountPoint(name);
  if (IsMountPoint(path)) return path;
  return MakeStatus(absl::StatusCode::kNotFound, "volume {} of the root is not mounted", name);
}

bool ContainerTable::HasHugePages(std::string_view page_size) const {
  const std::string name(page_size);
  if (name.empty() || name.size() > 16 || name.find_first_not_of("0123456789KMGB") != std::string::npos)
    return false;
  return access(fmt::format("{}/lamina/hugetlb.{}.max", options_.cgroup_mount, name).c_str(), F_OK) == 0;
}

std::function<void()> ContainerTable::NoteOom(const std::string& id, const TaskRef& task) const {
  return [cgroup = CgroupOf(id), task] {
    const auto kills = cgroup.OomKills();
    task->SetOomKilled(kills.ok() && *kills > 0);
  };
}

absl::StatusOr<ContainerTable::ContainerRef> ContainerTable::Find(const std::string& id) {
  MutexLock lock(mutex_);
  const auto found = containers_.find(id);
  if (found == containers_.end()) {
    return MakeStatus(absl::StatusCode::kNotFound, "there is no container {}",
                      std::string_view(id).substr(0, 160));
  }
  return found->second;
}

absl::StatusOr<TaskRef> ContainerTable::FindTask(const std::string& id, const std::string& exec_id) {
  ASSIGN_OR_RETURN(const ContainerRef container, Find(id));
  if (exec_id.empty()) return container->init;
  MutexLock lock(container->execs_mutex);
  const auto found = container->execs.find(exec_id);
  if (found == container->execs.end()) {
    return MakeStatus(absl::StatusCode::kNotFound, "container {} has no exec {}", id,
                      std::string_view(exec_id).substr(0, 160));
  }
  return found->second.task;
}

absl::StatusOr<Cgroup> ContainerTable::FindCgroup(const std::string& id) {
  RETURN_IF_ERROR(Find(id).status());
  return CgroupOf(id);
}

absl::StatusOr<pid_t> ContainerTable::Create(const agent::v1::CreateContainerRequest& request) {
  const std::string& id = request.container_id();
  RETURN_IF_ERROR(CheckSafeId(id, "container id"));
  auto container = std::make_shared<Container>();
  container->id = id;
  container->directory = options_.root + "/containers/" + id;
  container->layer_ids.assign(request.layer_ids().begin(), request.layer_ids().end());
  container->init = std::make_shared<Task>(mux_, processes_, StreamsOf(request));
  MutexLock operation(container->operation);
  {
    MutexLock lock(mutex_);
    if (containers_.size() >= options_.max_containers) {
      return MakeStatus(absl::StatusCode::kResourceExhausted, "{} containers are all that one sandbox takes",
                        options_.max_containers);
    }
    if (!containers_.emplace(id, container).second) {
      return MakeStatus(absl::StatusCode::kAlreadyExists, "container {} exists", id);
    }
  }
  auto pid = CreateLocked(request, *container);
  if (pid.ok()) return pid;
  const absl::Status undone = DeleteLocked(*container);
  if (!undone.ok()) LogError("container {}: undoing its creation: {}", id, Message(undone));
  return Annotate(pid.status(), "container " + id);
}

absl::StatusOr<pid_t> ContainerTable::CreateLocked(const agent::v1::CreateContainerRequest& request,
                                                   Container& container) {
  RETURN_IF_ERROR(container.init->BeginStart());
  SpecContext context;
  context.container_id = container.id;
  context.shared_directory = options_.root + "/shared";
  context.terminal = request.terminal();
  ASSIGN_OR_RETURN(context.devices, DevicesOf(request));
  context.has_huge_pages = [this](std::string_view size) { return HasHugePages(size); };
  if (!container.layer_ids.empty()) context.rootfs = container.directory + "/rootfs";
  ASSIGN_OR_RETURN(const PreparedSpec spec, PrepareSpec(request.spec_json(), context));
  container.shared_names = spec.shared_names;
  shared_.Use(container.shared_names);

  RETURN_IF_ERROR(MakeDirectory(container.directory));
  if (!container.layer_ids.empty()) {
    RETURN_IF_ERROR(modules_.Load("overlay"));
    ASSIGN_OR_RETURN(const std::string writable, WritableVolume(request.writable_volume()));
    ASSIGN_OR_RETURN(const std::vector<std::string> links, layers_.Acquire(container.layer_ids));
    container.overlay = true;
    RETURN_IF_ERROR(MountOverlay(container.directory, layers_.links_directory(), links,
                                 layers_.MountPoint(container.layer_ids.front()), writable));
  }
  RETURN_IF_ERROR(EnterShared(spec.shared_names, request));
  ASSIGN_OR_RETURN(
      const std::string config,
      PlaceMounts(spec.config_json,
                  {spec.rootfs, {options_.root + "/shared", options_.root + "/volumes"}, PinsOf(container)}));
  RETURN_IF_ERROR(WriteRegularFile(container.directory + "/config.json", config, 0600));

  ASSIGN_OR_RETURN(TaskStdio stdio,
                   TaskStdio::Open(container.init->streams(), crun_.TemporaryPath("console")));
  const std::string pid_file = crun_.TemporaryPath("pid");
  std::vector<std::string> arguments = {"create", "--bundle", container.directory, "--pid-file", pid_file};
  stdio.AddArguments(arguments);
  arguments.push_back(container.id);
  ProcessTable::AdoptScope adopting(processes_);
  container.created = true;  // from here on crun may have left something to delete
  RETURN_IF_ERROR(crun_.Run(arguments, stdio.for_crun()));
  RETURN_IF_ERROR(RemovePins(PinsOf(container)));  // the container has mounts of its own now
  ASSIGN_OR_RETURN(const pid_t pid, ReadPidFile(pid_file));
  const ProcessRef process = processes_.Adopt(pid, NoteOom(container.id, container.init));
  RETURN_IF_ERROR(container.init->Attach(std::move(stdio), process));
  return pid;
}

absl::Status ContainerTable::CreateExec(const agent::v1::ExecCreateRequest& request) {
  RETURN_IF_ERROR(CheckSafeId(request.exec_id(), "exec id"));
  ASSIGN_OR_RETURN(const ContainerRef container, Find(request.container_id()));
  ASSIGN_OR_RETURN(PreparedProcess process, PrepareProcess(request.process_json(), request.terminal()));
  auto task = std::make_shared<Task>(mux_, processes_, StreamsOf(request));
  MutexLock lock(container->execs_mutex);
  if (container->execs.size() >= options_.max_execs) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "{} execs are all that one container takes",
                      options_.max_execs);
  }
  if (!container->execs.emplace(request.exec_id(), Container::Exec{std::move(task), std::move(process)})
           .second) {
    return MakeStatus(absl::StatusCode::kAlreadyExists, "container {} has an exec {} already",
                      request.container_id(), request.exec_id());
  }
  return absl::OkStatus();
}

absl::StatusOr<pid_t> ContainerTable::Start(const std::string& id, const std::string& exec_id) {
  ASSIGN_OR_RETURN(const ContainerRef container, Find(id));
  if (!exec_id.empty()) return StartExec(*container, exec_id);
  MutexLock operation(container->operation);
  if (container->deleted) return MakeStatus(absl::StatusCode::kNotFound, "container {} has been deleted", id);
  const ProcessRef process = container->init->process();
  if (!process) return MakeStatus(absl::StatusCode::kFailedPrecondition, "container {} is not created", id);
  if (!container->started) {
    if (processes_.Exit(process)) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition, "container {} has ended before its start", id);
    }
    RETURN_IF_ERROR(Annotate(crun_.Run({"start", id}), "container " + id));
    container->started = true;
  }
  return process->pid();
}

absl::StatusOr<pid_t> ContainerTable::StartExec(Container& container, const std::string& exec_id) {
  TaskRef task;
  PreparedProcess prepared;
  {
    MutexLock lock(container.execs_mutex);
    const auto found = container.execs.find(exec_id);
    if (found == container.execs.end()) {
      return MakeStatus(absl::StatusCode::kNotFound, "container {} has no exec {}", container.id, exec_id);
    }
    task = found->second.task;
    prepared = found->second.process;
  }
  const ProcessRef init = container.init->process();
  if (!init || processes_.Exit(init)) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "container {} does not run", container.id);
  }
  RETURN_IF_ERROR(task->BeginStart());
  const auto run = [&]() -> absl::StatusOr<pid_t> {
    const std::string process_file = crun_.TemporaryPath("json"), pid_file = crun_.TemporaryPath("pid");
    RETURN_IF_ERROR(WriteRegularFile(process_file, prepared.json, 0600));
    ASSIGN_OR_RETURN(TaskStdio stdio, TaskStdio::Open(task->streams(), crun_.TemporaryPath("console")));
    std::vector<std::string> arguments = {"exec",       "--detach",   "--process",
                                          process_file, "--pid-file", pid_file};
    stdio.AddArguments(arguments);
    arguments.push_back(container.id);
    ProcessTable::AdoptScope adopting(processes_);
    const absl::Status done = crun_.Run(arguments, stdio.for_crun(), prepared.oom_score_adj);
    unlink(process_file.c_str());
    if (!done.ok()) {
      unlink(pid_file.c_str());
      return done;
    }
    ASSIGN_OR_RETURN(const pid_t pid, ReadPidFile(pid_file));
    const ProcessRef process = processes_.Adopt(pid, NoteOom(container.id, task));
    const absl::Status attached = task->Attach(std::move(stdio), process);
    if (!attached.ok()) {
      processes_.Signal(process, SIGKILL).IgnoreError();
      return attached;
    }
    return pid;
  };
  auto pid = run();
  if (!pid.ok()) {
    task->Fail();
    if (processes_.Exit(init)) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition, "container {} has ended: {}", container.id,
                        Message(pid.status()));
    }
    return Annotate(pid.status(), fmt::format("exec {} in container {}", exec_id, container.id));
  }
  return pid;
}

absl::Status ContainerTable::Signal(const std::string& id, const std::string& exec_id, int signal, bool all) {
  if (signal < 1 || signal > 64) return InvalidArgument("there is no signal {}", signal);
  ASSIGN_OR_RETURN(const TaskRef task, FindTask(id, exec_id));
  if (all && exec_id.empty()) {
    const Cgroup cgroup = CgroupOf(id);
    if (signal == SIGKILL) return cgroup.KillAll();
    ASSIGN_OR_RETURN(const std::vector<uint32_t> pids, cgroup.Pids());
    for (const uint32_t pid : pids) {
      // 0 would be the agent's own group.
      if (pid > 1 && kill(static_cast<pid_t>(pid), signal) != 0 && errno != ESRCH) {
        return ErrnoStatus(errno, fmt::format("send signal {} to process {}", signal, pid));
      }
    }
    return absl::OkStatus();
  }
  const ProcessRef process = task->process();
  if (!process) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "{} {} has not been started",
                      exec_id.empty() ? "container" : "exec", exec_id.empty() ? id : exec_id);
  }
  return processes_.Signal(process, signal);
}

absl::StatusOr<TaskExit> ContainerTable::Wait(const std::string& id, const std::string& exec_id) {
  ASSIGN_OR_RETURN(const TaskRef task, FindTask(id, exec_id));
  return task->Wait();
}

absl::Status ContainerTable::Update(const std::string& id, const std::string& resources_json) {
  ASSIGN_OR_RETURN(const ContainerRef container, Find(id));
  ASSIGN_OR_RETURN(
      const std::string resources,
      PrepareResources(resources_json, [this](std::string_view size) { return HasHugePages(size); }));
  MutexLock operation(container->operation);
  if (container->deleted) return MakeStatus(absl::StatusCode::kNotFound, "container {} has been deleted", id);
  const std::string file = crun_.TemporaryPath("json");
  RETURN_IF_ERROR(WriteRegularFile(file, resources, 0600));
  const absl::Status updated = crun_.Run({"update", "--resources", file, id});
  unlink(file.c_str());
  return Annotate(updated, "container " + id);
}

absl::Status ContainerTable::Delete(const std::string& id, const std::string& exec_id) {
  const auto found = Find(id);
  if (!found.ok()) return absl::OkStatus();
  if (!exec_id.empty()) return DeleteExec(**found, exec_id);
  MutexLock operation((*found)->operation);
  if ((*found)->deleted) return absl::OkStatus();
  return Annotate(DeleteLocked(**found), "container " + id);
}

absl::Status ContainerTable::DeleteLocked(Container& container) {
  const Cgroup cgroup = CgroupOf(container.id);
  if (container.created) {
    const absl::Status killed = cgroup.KillAll();
    if (!killed.ok()) LogWarning("container {}: {}", container.id, Message(killed));
  }
  RETURN_IF_ERROR(container.init->Kill());
  std::vector<std::string> execs;
  {
    MutexLock lock(container.execs_mutex);
    for (const auto& [exec_id, exec] : container.execs) execs.push_back(exec_id);
  }
  for (const std::string& exec_id : execs) RETURN_IF_ERROR(DeleteExec(container, exec_id));
  if (container.created) {
    const absl::Status removed = crun_.Run({"delete", "--force", container.id});
    // crun knows nothing of a container whose creation failed early.
    if (!removed.ok() && removed.code() != absl::StatusCode::kNotFound) {
      struct stat info;
      if (stat((options_.root + "/crun/" + container.id).c_str(), &info) == 0) return removed;
    }
    container.created = false;
  }
  container.init->Abandon();
  container.init->CloseStreams();
  RETURN_IF_ERROR(RemovePins(PinsOf(container)));
  if (container.overlay) {
    RETURN_IF_ERROR(UnmountOverlay(container.directory));
    layers_.Release(container.layer_ids);
    container.overlay = false;
  }
  unlink((container.directory + "/config.json").c_str());
  for (const char* sub : {"/rootfs", "/rw", ""}) rmdir((container.directory + sub).c_str());
  shared_.Leave(container.shared_names);
  container.shared_names.clear();
  rmdir(cgroup.directory().c_str());
  container.deleted = true;
  MutexLock lock(mutex_);
  containers_.erase(container.id);
  return absl::OkStatus();
}

absl::Status ContainerTable::DeleteExec(Container& container, const std::string& exec_id) {
  TaskRef task;
  {
    MutexLock lock(container.execs_mutex);
    const auto found = container.execs.find(exec_id);
    if (found == container.execs.end()) return absl::OkStatus();
    task = found->second.task;
  }
  RETURN_IF_ERROR(task->Kill());
  task->Abandon();
  task->CloseStreams();
  MutexLock lock(container.execs_mutex);
  container.execs.erase(exec_id);
  return absl::OkStatus();
}

void ContainerTable::DeleteAll() {
  std::vector<std::string> ids;
  {
    MutexLock lock(mutex_);
    for (const auto& [id, container] : containers_) ids.push_back(id);
  }
  for (const std::string& id : ids) CgroupOf(id).KillAll().IgnoreError();
  for (const std::string& id : ids) {
    const absl::Status deleted = Delete(id, "");
    if (!deleted.ok()) LogWarning("{}", Message(deleted));
  }
}

}  // namespace lamina::guest
