// A pod: conducts its parts through its life. docs/shim.md has the steps and their undo.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "base/mutex.h"
#include "cri/container_layers.h"
#include "cri/containers.h"
#include "cri/events.h"
#include "cri/laminad_client.h"
#include "cri/oci_spec.h"
#include "cri/pod_size.h"
#include "cri/pod_vm.h"
#include "cri/pod_volumes.h"
#include "cri/process.h"
#include "cri/state_book.h"
#include "cri/threads.h"

namespace lamina::cri {

// Thread-safe. `mutex_` guards where in its life the pod is; it is held during no call.
class Sandbox {
 public:
  // What is outside: laminad and the hypervisor, replaced in tests.
  struct Seams {
    LaminadClient laminad;
    VmDoors doors;
    std::chrono::milliseconds kill_bound = std::chrono::seconds(15);

    static Seams Real(const Config& config);
  };

  Sandbox(Config config, EventPublisher& events) : Sandbox(config, events, Seams::Real(config)) {}
  Sandbox(Config config, EventPublisher& events, Seams seams);
  // Ends the VM if it still lives, and waits for its threads.
  ~Sandbox();

  // Builds the VM from the bundle's config.json. On error nothing is left: no process, mount, tap, cgroup,
  // claim, state. A call while another builds it waits for that one. AlreadyExists: it runs.
  // DeadlineExceeded: it was not ready in time, all is undone.
  absl::Status Start(const std::string& id, const std::string& bundle, Deadline deadline);
  // The same from a pod's description that is not in a file.
  absl::Status StartPod(const std::string& id, const std::string& bundle, const BundleSpec& spec,
                        Deadline deadline);

  // Ends the VM and sees it dead; one that is being started is given up, and waited for until `deadline`. To
  // be repeated after an error. OK when there is none (any more).
  absl::Status Stop(Deadline deadline);
  // Stop, then gives back everything that the pod had. To be repeated after an error. NotFound: there is
  // none.
  absl::StatusOr<Deleted> Delete(Deadline deadline);

  std::string id() const;
  // The VM as containerd sees it, a process; null: there is none, or it is not ready yet.
  std::shared_ptr<Process> process() const;
  uint32_t vmm_pid() const;
  agent::v1::ContainerStats Stats() const;
  // The size and why, in words, for people.
  std::map<std::string, std::string> Info() const;
  Containers& containers() { return containers_; }
  // True: nothing is left but the shim itself. False: something is; if it is a start that was given up,
  // `later` is called once that is undone.
  bool IsEmpty(std::function<void()> later);

 private:
  enum class Phase { kNone, kStarting, kRunning, kStopping, kGone };

  absl::Status Build(const BundleSpec& spec, Deadline deadline, laminad::v1::ReadyRequest& ready);
  absl::Status BeginRunning();
  // False: `deadline` passed while the pod is still being started.
  bool AwaitStarted(Deadline deadline) REQUIRES(mutex_);
  void Enter(Phase phase);
  // Ends the VM for a reason of ours.
  void EndPod(const absl::Status& why);
  void WatchVm();

  const Config config_;
  EventPublisher& events_;
  LaminadClient laminad_;
  StateBook book_;
  PodVm vm_;
  PodSize size_;
  ContainerLayers layers_;
  HostSockets sockets_;
  PodDisks disks_;
  PodVolumes volumes_;
  Containers containers_;
  Mutex delete_mutex_;  // one clean-up at a time; before mutex_
  mutable Mutex mutex_;
  CondVar changed_;
  Phase phase_ GUARDED_BY(mutex_) = Phase::kNone;
  bool given_up_ GUARDED_BY(mutex_) = false;  // while it starts: it was stopped
  std::shared_ptr<Process> process_ GUARDED_BY(mutex_);
  std::string end_reason_ GUARDED_BY(mutex_);
  std::function<void()> when_empty_ GUARDED_BY(mutex_);
  Threads threads_;
};

}  // namespace lamina::cri
