// The pod's containers: overlay, crun, processes, cgroup.
//
// Lock order: table -> container.operation -> (container.execs | task | processes | layers); the last four
// are never held together except task -> processes.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "guest/agent/cgroup.h"
#include "guest/agent/crun.h"
#include "guest/agent/layers.h"
#include "guest/agent/modules.h"
#include "guest/agent/shared_names.h"
#include "guest/agent/spec.h"
#include "guest/agent/task.h"
#include "guest/agent/volumes.h"
#include "guest/protocol/contract.h"

namespace lamina::agent::v1 {
class CreateContainerRequest;
class ExecCreateRequest;
}  // namespace lamina::agent::v1

namespace lamina::guest {

struct ContainerTableOptions {
  std::string root = kGuestDirectory;  // containers/<id> is made below it
  std::string cgroup_mount = "/sys/fs/cgroup";
  size_t max_containers = kMaxContainers;
  size_t max_execs = kMaxExecsPerContainer;  // of one container
};

// Thread-safe. `exec_id` empty means the container's init. NotFound: no such container or exec.
class ContainerTable {
 public:
  ContainerTable(ContainerTableOptions options, StdioMux& mux, ProcessTable& processes, LayerTable& layers,
                 VolumeTable& volumes, ModuleLoader& modules, Crun& crun)
      : options_(std::move(options)),
        mux_(mux),
        processes_(processes),
        layers_(layers),
        volumes_(volumes),
        modules_(modules),
        crun_(crun),
        shared_(options_.root + "/shared") {}

  // The pid of the container's init, which waits for Start. AlreadyExists; on any error nothing is left of
  // it.
  absl::StatusOr<pid_t> Create(const agent::v1::CreateContainerRequest& request);
  absl::Status CreateExec(const agent::v1::ExecCreateRequest& request);
  // The pid. Repeated for a container that runs: the same pid.
  absl::StatusOr<pid_t> Start(const std::string& id, const std::string& exec_id);
  absl::Status Signal(const std::string& id, const std::string& exec_id, int signal, bool all);
  absl::StatusOr<TaskExit> Wait(const std::string& id, const std::string& exec_id);
  absl::StatusOr<TaskRef> FindTask(const std::string& id, const std::string& exec_id);
  absl::StatusOr<Cgroup> FindCgroup(const std::string& id);
  absl::Status Update(const std::string& id, const std::string& resources_json);
  // Kills what is left, removes all of it. OK when there is none; where it failed it goes on when repeated.
  absl::Status Delete(const std::string& id, const std::string& exec_id);
  void DeleteAll();

 private:
  struct Container {
    std::string id, directory;
    std::vector<std::string> layer_ids, shared_names;
    bool overlay = false;
    TaskRef init;
    Mutex operation;
    bool created GUARDED_BY(operation) = false, started GUARDED_BY(operation) = false,
                 deleted GUARDED_BY(operation) = false;
    Mutex execs_mutex;
    struct Exec {
      TaskRef task;
      PreparedProcess process;
    };
    std::map<std::string, Exec> execs GUARDED_BY(execs_mutex);
  };
  using ContainerRef = std::shared_ptr<Container>;

  absl::StatusOr<ContainerRef> Find(const std::string& id);
  absl::StatusOr<pid_t> CreateLocked(const agent::v1::CreateContainerRequest& request, Container& container)
      REQUIRES(container.operation);
  absl::StatusOr<pid_t> StartExec(Container& container, const std::string& exec_id);
  absl::Status DeleteLocked(Container& container) REQUIRES(container.operation);
  absl::Status DeleteExec(Container& container, const std::string& exec_id);
  static std::string PinsOf(const Container& container) { return container.directory + "/pins"; }
  absl::Status EnterShared(const std::vector<std::string>& names,
                           const agent::v1::CreateContainerRequest& request) const;
  absl::StatusOr<std::vector<ContainerDevice>> DevicesOf(
      const agent::v1::CreateContainerRequest& request) const;
  // Where it is mounted; "" for none.
  absl::StatusOr<std::string> WritableVolume(const std::string& name) const;
  bool HasHugePages(std::string_view page_size) const;
  Cgroup CgroupOf(const std::string& id) const { return Cgroup(options_.cgroup_mount, "/lamina/" + id); }
  // The task's exit callback, which notes whether the OOM killer was at work.
  std::function<void()> NoteOom(const std::string& id, const TaskRef& task) const;

  const ContainerTableOptions options_;
  StdioMux& mux_;
  ProcessTable& processes_;
  LayerTable& layers_;
  VolumeTable& volumes_;
  ModuleLoader& modules_;
  Crun& crun_;
  SharedNames shared_;
  Mutex mutex_;
  std::map<std::string, ContainerRef> containers_ GUARDED_BY(mutex_);
};

}  // namespace lamina::guest
