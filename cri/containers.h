// The containers of a pod and their processes.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "base/mutex.h"
#include "cri/container_layers.h"
#include "cri/events.h"
#include "cri/pod_size.h"
#include "cri/pod_vm.h"
#include "cri/pod_volumes.h"
#include "cri/process.h"
#include "cri/state_book.h"
#include "cri/threads.h"
#include "proto/agent.pb.h"
#include "proto/containerd/task.pb.h"

namespace lamina::cri {

// What a deleted process leaves.
struct Deleted {
  uint32_t pid = 0;  // in the guest; 0: it never had one
  ExitInfo exit;
};

// Thread-safe. NotFound names a container or exec that is not known. One container is created at a time; all
// else goes on beside it, and nothing waits for a guest without a bound.
class Containers {
 public:
  struct Parts {
    const Config& config;
    StateBook& book;
    EventPublisher& events;
    PodVm& vm;
    PodSize& size;
    ContainerLayers& layers;
    PodVolumes& volumes;
    PodDisks& disks;
    // Ends the whole pod, with a reason, when there is no other way to keep a promise. Called on any thread.
    std::function<void(const absl::Status&)> end_pod;
    // From SIGKILL to the end that the guest must have told by then.
    std::chrono::milliseconds kill_bound = std::chrono::seconds(15);
  };
  explicit Containers(Parts parts) : parts_(std::move(parts)) {}
  ~Containers();

  // Goes on where another process stopped: with the containers that the state names. Before any other call.
  // An exec is not in the state: it runs on, unknown, until its container ends. A stream whose FIFO is gone
  // is left out. ResourceExhausted: a container's end could not be watched.
  absl::Status Restore(const persist::SandboxState& state);

  // The container is known from the first moment, as one that is being created: Delete and Signal(SIGKILL)
  // give it up. So does the end of `deadline`: on every error all is undone. Gives the pid of its init in the
  // guest.
  absl::StatusOr<uint32_t> Create(const containerd::CreateTaskRequest& request, Deadline deadline);
  absl::Status CreateExec(const containerd::ExecProcessRequest& request, Deadline deadline);
  // exec_id empty: the container's init, here and below. A process whose end nobody could watch is not
  // started.
  absl::StatusOr<uint32_t> Start(const std::string& id, const std::string& exec_id);
  // SIGKILL of a container is a promise: if its end is not known within the bound, the pod is ended.
  absl::Status Signal(const std::string& id, const std::string& exec_id, uint32_t signal, bool all);
  // FailedPrecondition while it runs. One that is being created is given up and waited for until `deadline`.
  absl::StatusOr<Deleted> Delete(const std::string& id, const std::string& exec_id, Deadline deadline);
  absl::Status ResizeTerminal(const containerd::ResizePtyRequest& request);
  absl::Status CloseStdin(const std::string& id, const std::string& exec_id);
  absl::Status Update(const std::string& id, const std::string& resources_json);
  absl::StatusOr<agent::v1::ContainerStats> Stats(const std::string& id);
  absl::StatusOr<std::vector<uint32_t>> Pids(const std::string& id);

  // FailedPrecondition: it is still being created.
  absl::StatusOr<std::shared_ptr<Process>> Find(const std::string& id, const std::string& exec_id) const;
  bool empty() const;
  // The VM is going: what is being created is given up, nothing new begins. Does not wait.
  void GiveUp();
  // The VM is gone: all processes have ended like this. Waits until nothing is being created any more.
  void EndAll(ExitInfo exit);

 private:
  struct Container {
    std::string id, bundle;
    bool creating = true;
    bool given_up = false;
    bool deleting = false;
    std::shared_ptr<Process> init;  // null while it is being created
    std::map<std::string, std::shared_ptr<Process>> execs;
    ContainerLayers::Mounted layers;  // of the thread that creates or deletes it
    PodVolumes::Taken volumes;
    std::string root_disk;             // a volume of the guest's; empty: its root is in memory, or read-only
    std::vector<std::string> devices;  // volumes of the guest's too
  };

  absl::StatusOr<std::shared_ptr<Container>> Enter(const std::string& id, const std::string& bundle,
                                                   Deadline deadline);
  void Leave(const Container& container, bool created);
  // Asked between the steps of a creation: does anybody still want it?
  absl::Status WantedLocked(const Container& container, Deadline deadline) const REQUIRES(mutex_);
  absl::Status Wanted(const Container& container, Deadline deadline) const;
  absl::Status Accept(Container& container, const std::shared_ptr<Process>& init, Deadline deadline);
  void AwaitChange(Deadline deadline) REQUIRES(mutex_);
  absl::StatusOr<std::shared_ptr<Process>> Make(const containerd::CreateTaskRequest& request,
                                                Deadline deadline, Container& container);
  // The disk that its root is written to, and the node's devices that its spec asks for.
  absl::Status AddDisks(const BundleSpec& spec, const std::string& upper_dir, Container& container,
                        agent::v1::CreateContainerRequest& create);
  absl::Status RecordCreated(const Container& container, const Process& init);
  std::shared_ptr<Process> RestoreInit(const persist::ContainerState& held);
  // Everything that Make may have done, in reverse.
  absl::Status Undo(const Container& container);
  absl::StatusOr<std::shared_ptr<Container>> FindContainer(const std::string& id) const REQUIRES(mutex_);
  absl::Status RoomForStreams() const REQUIRES(mutex_);
  absl::StatusOr<std::shared_ptr<ProcessStdio>> OpenStdio(const StdioPaths& paths);
  absl::StatusOr<ExitInfo> DeleteExec(const std::string& id, const std::string& exec_id, Process& process);
  absl::Status DeleteContainer(const std::string& id);
  std::vector<std::string> VolumesOf(const std::string& id) const;
  void Watch(const std::shared_ptr<Process>& process);
  void WatchKill(const std::shared_ptr<Process>& process);
  void Publish(const Process& process, ExitInfo exit);

  const Parts parts_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::map<std::string, std::shared_ptr<Container>> containers_ GUARDED_BY(mutex_);
  const Container* turn_ GUARDED_BY(mutex_) = nullptr;  // the one that is being made
  bool stopped_ GUARDED_BY(mutex_) = false;
  std::atomic<uint32_t> next_stream_{1};
  Threads threads_;
};

}  // namespace lamina::cri
