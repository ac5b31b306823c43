#include "cri/task_service.h"

#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "proto/containerd/cgroups.pb.h"
#include "proto/containerd/task.pb.h"

namespace lamina::cri {
namespace {

using containerd::Nothing;
using ttrpc::CallContext;

containerd::Timestamp Stamp(int64_t unix_nanos) {
  containerd::Timestamp stamp;
  stamp.set_seconds(unix_nanos / 1'000'000'000);
  stamp.set_nanos(static_cast<int32_t>(unix_nanos % 1'000'000'000));
  return stamp;
}

uint64_t Of(const agent::v1::ContainerStats& stats, const char* key) {
  const auto it = stats.memory_stat().find(key);
  return it == stats.memory_stat().end() ? 0 : it->second;
}

containerd::cgroups::Metrics ToMetrics(const agent::v1::ContainerStats& stats) {
  containerd::cgroups::Metrics metrics;
  metrics.mutable_pids()->set_current(stats.pids_current());
  metrics.mutable_pids()->set_limit(stats.pids_limit());
  auto* cpu = metrics.mutable_cpu();
  cpu->set_usage_usec(stats.cpu_usage_usec());
  cpu->set_user_usec(stats.cpu_user_usec());
  cpu->set_system_usec(stats.cpu_system_usec());
  cpu->set_nr_periods(stats.cpu_periods());
  cpu->set_nr_throttled(stats.cpu_throttled_periods());
  cpu->set_throttled_usec(stats.cpu_throttled_usec());
  auto* memory = metrics.mutable_memory();
  memory->set_anon(Of(stats, "anon"));
  memory->set_file(Of(stats, "file"));
  memory->set_kernel_stack(Of(stats, "kernel_stack"));
  memory->set_slab(Of(stats, "slab"));
  memory->set_shmem(Of(stats, "shmem"));
  memory->set_file_mapped(Of(stats, "file_mapped"));
  memory->set_file_dirty(Of(stats, "file_dirty"));
  memory->set_file_writeback(Of(stats, "file_writeback"));
  memory->set_inactive_anon(Of(stats, "inactive_anon"));
  memory->set_active_anon(Of(stats, "active_anon"));
  memory->set_inactive_file(Of(stats, "inactive_file"));
  memory->set_active_file(Of(stats, "active_file"));
  memory->set_unevictable(Of(stats, "unevictable"));
  memory->set_pgfault(Of(stats, "pgfault"));
  memory->set_pgmajfault(Of(stats, "pgmajfault"));
  memory->set_usage(stats.memory_usage_bytes());
  memory->set_usage_limit(stats.memory_limit_bytes());
  memory->set_swap_usage(stats.swap_usage_bytes());
  metrics.mutable_memory_events()->set_oom(stats.memory_oom());
  metrics.mutable_memory_events()->set_oom_kill(stats.memory_oom_kill());
  return metrics;
}

class TaskService {
 public:
  TaskService(Sandbox& sandbox, EventPublisher& events, std::function<void()> shut_down)
      : sandbox_(sandbox), events_(events), shut_down_(std::move(shut_down)) {}

  absl::StatusOr<containerd::CreateTaskResponse> Create(const containerd::CreateTaskRequest& request) {
    containerd::CreateTaskResponse response;
    if (!sandbox_.started()) {
      RETURN_IF_ERROR(sandbox_.Start(request.id(), request.bundle()));
      response.set_pid(sandbox_.vmm_pid());
    } else if (request.id() == sandbox_.id()) {
      response.set_pid(sandbox_.vmm_pid());
    } else {
      ASSIGN_OR_RETURN(const uint32_t pid, sandbox_.CreateContainer(request));
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
    ASSIGN_OR_RETURN(const uint32_t pid, sandbox_.StartProcess(request.id(), request.exec_id()));
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

  absl::StatusOr<Nothing> Exec(const containerd::ExecProcessRequest& request) {
    RETURN_IF_ERROR(sandbox_.CreateExec(request));
    containerd::TaskExecAdded event;
    event.set_container_id(request.id());
    event.set_exec_id(request.exec_id());
    events_.Publish("/tasks/exec-added", "containerd.events.TaskExecAdded", event);
    return Nothing();
  }

  absl::StatusOr<containerd::DeleteResponse> Delete(const containerd::TaskRequest& request) {
    uint32_t pid = 0;
    ASSIGN_OR_RETURN(const ExitInfo exit, sandbox_.DeleteProcess(request.id(), request.exec_id(), pid));
    containerd::DeleteResponse response;
    response.set_pid(HostPid(pid));
    response.set_exit_status(exit.status);
    *response.mutable_exited_at() = Stamp(exit.unix_nanos);
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
    ASSIGN_OR_RETURN(const std::shared_ptr<Process> process, sandbox_.Find(request.id(), request.exec_id()));
    containerd::StateResponse response;
    response.set_id(request.id());
    response.set_exec_id(request.exec_id());
    response.set_bundle(sandbox_.BundleOf(request.id()));
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
      *response.mutable_exited_at() = Stamp(exit->unix_nanos);
    }
    return response;
  }

  absl::StatusOr<containerd::WaitResponse> Wait(const containerd::TaskRequest& request) {
    ASSIGN_OR_RETURN(const std::shared_ptr<Process> process, sandbox_.Find(request.id(), request.exec_id()));
    const ExitInfo exit = process->WaitExit();
    containerd::WaitResponse response;
    response.set_exit_status(exit.status);
    *response.mutable_exited_at() = Stamp(exit.unix_nanos);
    return response;
  }

  absl::StatusOr<containerd::ConnectResponse> Connect() {
    containerd::ConnectResponse response;
    response.set_shim_pid(static_cast<uint32_t>(getpid()));
    response.set_task_pid(sandbox_.vmm_pid());
    return response;
  }

  absl::StatusOr<containerd::PidsResponse> Pids(const containerd::TaskRequest& request) {
    ASSIGN_OR_RETURN(const std::vector<uint32_t> pids, sandbox_.Pids(request.id()));
    containerd::PidsResponse response;
    for (const uint32_t pid : pids) response.add_processes()->set_pid(pid);
    return response;
  }

  absl::StatusOr<containerd::StatsResponse> Stats(const containerd::TaskRequest& request) {
    ASSIGN_OR_RETURN(const agent::v1::ContainerStats stats, sandbox_.Stats(request.id()));
    containerd::StatsResponse response;
    *response.mutable_stats() = MetricsOf(stats);
    return response;
  }

  absl::StatusOr<Nothing> Shutdown(const CallContext& context) {
    if (sandbox_.empty()) *context.after_answer = shut_down_;
    return Nothing();
  }

  Sandbox& sandbox() { return sandbox_; }

 private:
  // For containerd a pid is something in the host's /proc: everything in the VM is its QEMU.
  uint32_t HostPid(uint32_t pid) const { return pid == 0 ? 0 : sandbox_.vmm_pid(); }

  Sandbox& sandbox_;
  EventPublisher& events_;
  const std::function<void()> shut_down_;
};

}  // namespace

containerd::Any MetricsOf(const agent::v1::ContainerStats& stats) {
  containerd::Any data;
  data.set_type_url("io.containerd.cgroups.v2.Metrics");
  ToMetrics(stats).SerializeToString(data.mutable_value());
  return data;
}

void RegisterTaskService(ttrpc::Server& server, Sandbox& sandbox, EventPublisher& events,
                         std::function<void()> shut_down) {
  const auto service = std::make_shared<TaskService>(sandbox, events, std::move(shut_down));
  for (const char* name : {"containerd.task.v2.Task", "containerd.task.v3.Task"}) {
    using containerd::TaskRequest;
    server.Handle<containerd::CreateTaskRequest, containerd::CreateTaskResponse>(
        name, "Create", [service](auto&, auto& r) { return service->Create(r); });
    server.Handle<TaskRequest, containerd::StartResponse>(
        name, "Start", [service](auto&, auto& r) { return service->Start(r); });
    server.Handle<containerd::ExecProcessRequest, Nothing>(
        name, "Exec", [service](auto&, auto& r) { return service->Exec(r); });
    server.Handle<TaskRequest, containerd::DeleteResponse>(
        name, "Delete", [service](auto&, auto& r) { return service->Delete(r); });
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
    server.Handle<containerd::KillRequest, Nothing>(name, "Kill", [service, plain](auto&, auto& r) {
      return plain(service->sandbox().Signal(r.id(), r.exec_id(), r.signal(), r.all()));
    });
    server.Handle<containerd::ResizePtyRequest, Nothing>(
        name, "ResizePty", [service, plain](auto&, auto& r) { return plain(service->sandbox().Resize(r)); });
    server.Handle<containerd::CloseIORequest, Nothing>(name, "CloseIO", [service, plain](auto&, auto& r) {
      return plain(r.stdin() ? service->sandbox().CloseStdin(r.id(), r.exec_id()) : absl::OkStatus());
    });
    server.Handle<containerd::UpdateTaskRequest, Nothing>(name, "Update", [service, plain](auto&, auto& r) {
      return plain(service->sandbox().Update(r.id(), r.resources().value()));
    });
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
