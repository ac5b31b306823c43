#include "cri/task_service.h"

#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "cri/messages.h"
#include "proto/containerd/task.pb.h"

namespace lamina::cri {
namespace {

using containerd::Nothing;
using ttrpc::CallContext;

class TaskService {
 public:
  TaskService(Sandbox& sandbox, EventPublisher& events, std::function<void()> shut_down)
      : sandbox_(sandbox), events_(events), shut_down_(std::move(shut_down)) {}

  absl::StatusOr<containerd::CreateTaskResponse> Create(const CallContext& context,
                                                        const containerd::CreateTaskRequest& request) {
    containerd::CreateTaskResponse response;
    if (sandbox_.process() == nullptr) {
      const absl::Status started = sandbox_.Start(request.id(), request.bundle(), context.deadline);
      // Another call may have started it meanwhile.
      if (!started.ok() && !(absl::IsAlreadyExists(started) && request.id() == sandbox_.id())) return started;
      response.set_pid(sandbox_.vmm_pid());
    } else if (request.id() == sandbox_.id()) {
      response.set_pid(sandbox_.vmm_pid());
    } else {
      ASSIGN_OR_RETURN(const uint32_t pid, sandbox_.containers().Create(request, context.deadline));
      response.set_pid(HostPid(pid));
    }
    containerd::TaskCreate event;
    event.set_container_id(request.id());
    event.set_bundle(request.bundle());
    *event.mutable_rootfs() = request.rootfs();
    event.mutable_io()->set_stdin(request.stdin());
    event.mutable_io()->set_stdout(request.stdout());
    event.mutable_io()->set_stderr(request.stderr());
    event.mutable_io()->set_terminal(request.terminal());
    event.set_pid(response.pid());
    events_.Publish("/tasks/create", "containerd.events.TaskCreate", event);
    return response;
  }

  absl::StatusOr<containerd::StartResponse> Start(const containerd::TaskRequest& request) {
    ASSIGN_OR_RETURN(const uint32_t pid, StartProcess(request.id(), request.exec_id()));
    containerd::StartResponse response;
    response.set_pid(HostPid(pid));
    if (request.exec_id().empty()) {
      containerd::TaskStart event;
      event.set_container_id(request.id());
      event.set_pid(response.pid());
      events_.Publish("/tasks/start", "containerd.events.TaskStart", event);
    } else {
      containerd::TaskExecStarted event;
      event.set_container_id(request.id());
      event.set_exec_id(request.exec_id());
      event.set_pid(response.pid());
      events_.Publish("/tasks/exec-started", "containerd.events.TaskExecStarted", event);
    }
    return response;
  }

  absl::StatusOr<Nothing> Exec(const CallContext& context, const containerd::ExecProcessRequest& request) {
    RETURN_IF_ERROR(sandbox_.containers().CreateExec(request, context.deadline));
    containerd::TaskExecAdded event;
    event.set_container_id(request.id());
    event.set_exec_id(request.exec_id());
    events_.Publish("/tasks/exec-added", "containerd.events.TaskExecAdded", event);
    return Nothing();
  }

  absl::StatusOr<containerd::DeleteResponse> Delete(const CallContext& context,
                                                    const containerd::TaskRequest& request) {
    const bool whole = request.id() == sandbox_.id() && request.exec_id().empty();
    ASSIGN_OR_RETURN(const Deleted deleted,
                     whole ? sandbox_.Delete(context.deadline)
                           : sandbox_.containers().Delete(request.id(), request.exec_id(), context.deadline));
    const ExitInfo exit = deleted.exit;
    containerd::DeleteResponse response;
    response.set_pid(HostPid(deleted.pid));
    response.set_exit_status(exit.status);
    *response.mutable_exited_at() = ToTimestamp(exit.unix_nanos);
    if (request.exec_id().empty()) {
      containerd::TaskDelete event;
      event.set_container_id(request.id());
      event.set_id(request.id());
      event.set_pid(response.pid());
      event.set_exit_status(exit.status);
      *event.mutable_exited_at() = response.exited_at();
      events_.Publish("/tasks/delete", "containerd.events.TaskDelete", event);
    }
    return response;
  }

  absl::StatusOr<containerd::StateResponse> State(const containerd::TaskRequest& request) {
    ASSIGN_OR_RETURN(const std::shared_ptr<Process> process, Find(request.id(), request.exec_id()));
    containerd::StateResponse response;
    response.set_id(request.id());
    response.set_exec_id(request.exec_id());
    response.set_bundle(process->bundle);
    response.set_pid(HostPid(process->pid()));
    response.set_stdin(process->paths.in);
    response.set_stdout(process->paths.out);
    response.set_stderr(process->paths.err);
    response.set_terminal(process->paths.terminal);
    switch (process->status()) {
      case ProcessStatus::kCreated:
        response.set_status(containerd::CREATED);
        break;
      case ProcessStatus::kRunning:
        response.set_status(containerd::RUNNING);
        break;
      case ProcessStatus::kStopped:
        response.set_status(containerd::STOPPED);
        break;
    }
    if (const auto exit = process->exit()) {
      response.set_exit_status(exit->status);
      *response.mutable_exited_at() = ToTimestamp(exit->unix_nanos);
    }
    return response;
  }

  absl::StatusOr<containerd::WaitResponse> Wait(const containerd::TaskRequest& request) {
    ASSIGN_OR_RETURN(const std::shared_ptr<Process> process, Find(request.id(), request.exec_id()));
    const ExitInfo exit = process->WaitExit();
    containerd::WaitResponse response;
    response.set_exit_status(exit.status);
    *response.mutable_exited_at() = ToTimestamp(exit.unix_nanos);
    return response;
  }

  absl::StatusOr<containerd::ConnectResponse> Connect() {
    containerd::ConnectResponse response;
    response.set_shim_pid(static_cast<uint32_t>(getpid()));
    response.set_task_pid(sandbox_.vmm_pid());
    return response;
  }

  absl::StatusOr<containerd::PidsResponse> Pids(const containerd::TaskRequest& request) {
    containerd::PidsResponse response;
    if (IsSandbox(request.id(), "")) {
      response.add_processes()->set_pid(sandbox_.vmm_pid());
      return response;
    }
    ASSIGN_OR_RETURN(const std::vector<uint32_t> pids, sandbox_.containers().Pids(request.id()));
    for (const uint32_t pid : pids) response.add_processes()->set_pid(pid);
    return response;
  }

  absl::StatusOr<containerd::StatsResponse> Stats(const containerd::TaskRequest& request) {
    // Of the sandbox itself: what QEMU and virtiofsd take of the host.
    ASSIGN_OR_RETURN(const agent::v1::ContainerStats stats, IsSandbox(request.id(), "")
                                                                ? sandbox_.Stats()
                                                                : sandbox_.containers().Stats(request.id()));
    containerd::StatsResponse response;
    *response.mutable_stats() = MetricsOf(stats);
    return response;
  }

  absl::StatusOr<Nothing> Shutdown(const CallContext& context) {
    if (sandbox_.IsEmpty(shut_down_)) *context.after_answer = shut_down_;
    return Nothing();
  }

  absl::Status Kill(const CallContext& context, const containerd::KillRequest& request) {
    if (!IsSandbox(request.id(), request.exec_id()))
      return sandbox_.containers().Signal(request.id(), request.exec_id(), request.signal(), request.all());
    const std::shared_ptr<Process> vm = sandbox_.process();
    if (vm != nullptr && vm->status() == ProcessStatus::kStopped)
      return absl::NotFoundError("process already finished");
    return sandbox_.Stop(context.deadline);  // any signal ends the VM
  }

  absl::Status Update(const containerd::UpdateTaskRequest& request) {
    if (IsSandbox(request.id(), "")) return absl::OkStatus();  // the pod's cgroup is the kubelet's
    return sandbox_.containers().Update(request.id(), request.resources().value());
  }

  absl::Status CloseIo(const containerd::CloseIORequest& request) {
    if (!request.stdin() || IsSandbox(request.id(), request.exec_id())) return absl::OkStatus();
    return sandbox_.containers().CloseStdin(request.id(), request.exec_id());
  }

  absl::Status ResizePty(const containerd::ResizePtyRequest& request) {
    return sandbox_.containers().ResizeTerminal(request);
  }

 private:
  bool IsSandbox(const std::string& id, const std::string& exec_id) const {
    return exec_id.empty() && !id.empty() && id == sandbox_.id();
  }

  absl::StatusOr<std::shared_ptr<Process>> Find(const std::string& id, const std::string& exec_id) {
    if (IsSandbox(id, exec_id)) {
      if (std::shared_ptr<Process> vm = sandbox_.process()) return vm;
    }
    return sandbox_.containers().Find(id, exec_id);
  }

  // The VM runs when it has been created; its start only says so.
  absl::StatusOr<uint32_t> StartProcess(const std::string& id, const std::string& exec_id) {
    if (!IsSandbox(id, exec_id)) return sandbox_.containers().Start(id, exec_id);
    ASSIGN_OR_RETURN(const std::shared_ptr<Process> vm, Find(id, exec_id));
    if (vm->status() == ProcessStatus::kStopped)
      return MakeStatus(absl::StatusCode::kFailedPrecondition, "sandbox {} has ended already", id);
    vm->SetRunning(vm->pid());
    return vm->pid();
  }

  // For containerd a pid is something in the host's /proc: everything in the VM is its QEMU.
  uint32_t HostPid(uint32_t pid) const { return pid == 0 ? 0 : sandbox_.vmm_pid(); }

  Sandbox& sandbox_;
  EventPublisher& events_;
  const std::function<void()> shut_down_;
};

}  // namespace

void RegisterTaskService(ttrpc::Server& server, Sandbox& sandbox, EventPublisher& events,
                         std::function<void()> shut_down) {
  const auto service = std::make_shared<TaskService>(sandbox, events, std::move(shut_down));
  for (const char* name : {"containerd.task.v2.Task", "containerd.task.v3.Task"}) {
    using containerd::TaskRequest;
    server.Handle<containerd::CreateTaskRequest, containerd::CreateTaskResponse>(
        name, "Create", [service](auto& c, auto& r) { return service->Create(c, r); });
    server.Handle<TaskRequest, containerd::StartResponse>(
        name, "Start", [service](auto&, auto& r) { return service->Start(r); });
    server.Handle<containerd::ExecProcessRequest, Nothing>(
        name, "Exec", [service](auto& c, auto& r) { return service->Exec(c, r); });
    server.Handle<TaskRequest, containerd::DeleteResponse>(
        name, "Delete", [service](auto& c, auto& r) { return service->Delete(c, r); });
    server.Handle<TaskRequest, containerd::StateResponse>(
        name, "State", [service](auto&, auto& r) { return service->State(r); });
    server.Handle<TaskRequest, containerd::WaitResponse>(
        name, "Wait", [service](auto&, auto& r) { return service->Wait(r); });
    server.Handle<TaskRequest, containerd::ConnectResponse>(
        name, "Connect", [service](auto&, auto&) { return service->Connect(); });
    server.Handle<TaskRequest, containerd::PidsResponse>(
        name, "Pids", [service](auto&, auto& r) { return service->Pids(r); });
    server.Handle<TaskRequest, containerd::StatsResponse>(
        name, "Stats", [service](auto&, auto& r) { return service->Stats(r); });
    server.Handle<containerd::ShutdownRequest, Nothing>(
        name, "Shutdown", [service](auto& context, auto&) { return service->Shutdown(context); });
    const auto plain = [](const absl::Status& status) -> absl::StatusOr<Nothing> {
      if (!status.ok()) return status;
      return Nothing();
    };
    server.Handle<containerd::KillRequest, Nothing>(
        name, "Kill", [service, plain](auto& c, auto& r) { return plain(service->Kill(c, r)); });
    server.Handle<containerd::ResizePtyRequest, Nothing>(
        name, "ResizePty", [service, plain](auto&, auto& r) { return plain(service->ResizePty(r)); });
    server.Handle<containerd::CloseIORequest, Nothing>(
        name, "CloseIO", [service, plain](auto&, auto& r) { return plain(service->CloseIo(r)); });
    server.Handle<containerd::UpdateTaskRequest, Nothing>(
        name, "Update", [service, plain](auto&, auto& r) { return plain(service->Update(r)); });
    for (const char* method : {"Pause", "Resume", "Checkpoint"}) {
      server.Register(name, method,
                      [method](const CallContext&, std::string_view) -> absl::StatusOr<std::string> {
                        return MakeStatus(absl::StatusCode::kUnimplemented,
                                          "{} is not offered by the lamina runtime", method);
                      });
    }
  }
}

}  // namespace lamina::cri
