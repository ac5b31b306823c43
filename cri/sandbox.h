// A pod: its VM, its containers, its state file. docs/shim.md has the steps and their undo.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "base/mutex.h"
#include "base/ttrpc/client.h"
#include "cri/events.h"
#include "cri/oci_spec.h"
#include "cri/process.h"
#include "guest/protocol/stdio_mux.h"
#include "persist/state_store.h"
#include "proto/agent.pb.h"
#include "proto/containerd/task.pb.h"
#include "proto/laminad.pb.h"
#include "sizing/pod.h"
#include "vmm/vm.h"

namespace lamina::cri {

// Thread-safe. Long steps run under `build_mutex_` (one at a time per pod), changes of the VM's size under
// `resize_mutex_`, state and maps under `mutex_`; taken in this order.
class Sandbox {
 public:
  Sandbox(Config config, EventPublisher& events)
      : config_(std::move(config)), events_(events), store_(FileSystem::Real(), config_.paths.state_dir) {}
  ~Sandbox();

  // Builds the VM. On error nothing is left: no process, mount, tap, cgroup, claim, state.
  absl::Status Start(const std::string& id, const std::string& bundle);
  // The same from a pod's description that is not in a file.
  absl::Status StartPod(const std::string& id, const std::string& bundle, const BundleSpec& spec);
  bool started() const;
  uint32_t vmm_pid() const;
  const std::string& id() const { return id_; }

  absl::StatusOr<uint32_t> CreateContainer(const containerd::CreateTaskRequest& request);
  absl::Status CreateExec(const containerd::ExecProcessRequest& request);
  absl::StatusOr<uint32_t> StartProcess(const std::string& id, const std::string& exec_id);
  absl::Status Signal(const std::string& id, const std::string& exec_id, uint32_t signal, bool all);
  absl::StatusOr<ExitInfo> DeleteProcess(const std::string& id, const std::string& exec_id, uint32_t& pid);
  absl::Status Resize(const containerd::ResizePtyRequest& request);
  absl::Status CloseStdin(const std::string& id, const std::string& exec_id);
  absl::Status Update(const std::string& id, const std::string& resources_json);
  // Of the sandbox itself: what QEMU and virtiofsd take of the host.
  absl::StatusOr<agent::v1::ContainerStats> Stats(const std::string& id);
  absl::StatusOr<std::vector<uint32_t>> Pids(const std::string& id);

  // NotFound names the id. exec_id empty: the container's init; the sandbox's own id: the VM.
  absl::StatusOr<std::shared_ptr<Process>> Find(const std::string& id, const std::string& exec_id) const;
  std::string BundleOf(const std::string& id) const;
  // The size and why, in words, for people.
  std::map<std::string, std::string> Info() const;
  // Nothing is left but the shim itself.
  bool empty() const;

 private:
  struct Container {
    std::string id, bundle;
    std::shared_ptr<Process> init;
    std::map<std::string, std::shared_ptr<Process>> execs;
    std::vector<std::string> layer_ids, volumes;
    std::vector<uint64_t> disks;  // reservations
  };

  absl::Status BuildVm(const BundleSpec& spec, laminad::v1::ReadyRequest& ready);
  absl::Status ClaimMemory(const BundleSpec& spec, laminad::v1::ClaimResponse& claim);
  absl::Status CallLaminad(const char* method, const google::protobuf::MessageLite& request,
                           google::protobuf::MessageLite* response, std::chrono::nanoseconds timeout);
  absl::Status CallAgent(const char* method, const google::protobuf::MessageLite& request,
                         google::protobuf::MessageLite* response, std::chrono::nanoseconds timeout);
  absl::Status Save();

  // resize.cc
  absl::StatusOr<sizing::VmPlan> PlanFirst(const BundleSpec& spec);
  absl::Status CheckCgroup(const sizing::VmPlan& plan) const REQUIRES(resize_mutex_);
  // Of the pod, or as declared.
  sizing::CgroupLimits CgroupLimits() const;
  uint64_t MemoryVolumeBytes() const REQUIRES(resize_mutex_);
  // What a VM with a guest of so many bytes is to claim: the host side with it, and the memory-backed volumes
  // as far as the pod's cgroup lets them grow.
  uint64_t ClaimFor(uint64_t guest_bytes) const REQUIRES(resize_mutex_);
  // Raises the claim to this, durably, or changes nothing.
  absl::Status RaiseClaim(uint64_t bytes) REQUIRES(resize_mutex_);
  // Grows the VM to what `limits` need: laminad is asked first, its refusal changes nothing. Never shrinks.
  absl::Status GrowFor(const sizing::PodLimits& limits) REQUIRES(resize_mutex_);
  absl::Status GrowTo(const sizing::VmPlan& plan, uint64_t hot_bytes) REQUIRES(resize_mutex_);
  absl::Status SetVcpus(uint32_t vcpus, std::chrono::milliseconds timeout) REQUIRES(resize_mutex_);
  // Asks for everything back that limits_ don't need. Waits for no memory; what fails is logged.
  void ShrinkToFit() REQUIRES(resize_mutex_);
  static laminad::v1::SizingReport Report(const sizing::VmPlan& plan);
  absl::Status Retarget(uint64_t claim_bytes) REQUIRES(resize_mutex_);
  // laminad shows this plan soon, and lowers the claim as the guest gives memory back. Waits for neither.
  void ShowPlan(const sizing::VmPlan& plan) REQUIRES(resize_mutex_);
  void WatchMemory();
  absl::Status AdmitContainer(const std::string& id, const BundleSpec& spec);
  void DismissContainer(const std::string& id);
  void KeepLimits(const sizing::PodLimits& limits) REQUIRES(resize_mutex_);

  void WatchVm();
  void WatchProcess(std::shared_ptr<Process> process);
  void PublishExit(const Process& process, const ExitInfo& exit);
  absl::Status StopVm();

  // containers.cc
  absl::Status MountLayers(const containerd::CreateTaskRequest& request, Container& container);
  // A disk for the container, attached until UnmountLayers.
  absl::StatusOr<agent::v1::ScsiDisk> AttachDisk(const std::string& image, uint64_t bytes,
                                                 Container& container);
  absl::Status UnmountLayers(const Container& container);
  agent::v1::ContainerStats HostStats() const;
  // The files that the container has as disks.
  std::vector<std::string> DisksLocked(const Container& container) const REQUIRES(mutex_);
  absl::StatusOr<std::map<size_t, std::string>> BindVolumes(const BundleSpec& spec, Container& container);
  absl::Status UndoContainer(const Container& container);
  absl::StatusOr<std::shared_ptr<ProcessStdio>> OpenStdio(const StdioPaths& paths);

  const Config config_;
  EventPublisher& events_;
  persist::StateStore store_;
  std::string id_;

  Mutex build_mutex_;
  Mutex resize_mutex_;
  mutable Mutex mutex_;
  persist::SandboxState state_ GUARDED_BY(mutex_);
  std::map<std::string, std::shared_ptr<Container>> containers_ GUARDED_BY(mutex_);
  std::map<std::string, uint32_t> layer_users_ GUARDED_BY(mutex_);  // layer id -> containers
  std::shared_ptr<Process> init_ GUARDED_BY(mutex_);                // the VM
  bool stopping_ GUARDED_BY(mutex_) = false;
  bool removed_ GUARDED_BY(mutex_) = false;  // the clean-up has begun: the state is only read any more
  std::unique_ptr<ttrpc::Client> laminad_ GUARDED_BY(mutex_);

  sizing::PlanInput plan_input_;  // the node's values and the pod's overrides; set before the VM is there
  std::string cgroup_path_;       // under a hierarchy; empty: none
  sizing::CgroupLimits declared_cgroup_;  // limits + podFixed, where both are known
  sizing::PodLimits limits_ GUARDED_BY(resize_mutex_);
  // container id -> volume -> bytes; containers may share one.
  std::map<std::string, std::map<std::string, uint64_t>> memory_volumes_ GUARDED_BY(resize_mutex_);
  std::optional<sizing::VmPlan> unshown_ GUARDED_BY(resize_mutex_);  // laminad shows an older one
  bool watching_memory_ GUARDED_BY(resize_mutex_) = false;

  UniqueFd virtiofsd_pidfd_;
  std::unique_ptr<vmm::Vm> vm_;
  vmm::Resizer* resizer_ = nullptr;  // null: the VM keeps its size
  std::unique_ptr<ttrpc::Client> agent_;
  std::unique_ptr<guest::StdioMux> mux_;
  std::atomic<uint32_t> next_stream_{1};
};

}  // namespace lamina::cri
