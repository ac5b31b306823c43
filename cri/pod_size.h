// The pod's size: first planned from what is known of the pod, then moved with its containers' limits.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "base/mutex.h"
#include "base/ttrpc/method.h"
#include "cri/laminad_client.h"
#include "cri/oci_spec.h"
#include "cri/state_book.h"
#include "cri/threads.h"
#include "sizing/pod.h"
#include "vmm/vm.h"

namespace lamina::cri {

// What a pod's VM starts with, and how far it may grow.
struct FirstSize {
  sizing::VmPlan plan;
  sizing::NumaNodes numa_nodes;  // that its memory is bound to; empty: anywhere
  std::string cgroup_path;       // of the sandbox, under a hierarchy; empty: none
  uint32_t max_vcpus = 0;
  uint64_t max_hot_memory_bytes = 0;
  uint64_t claim_bytes = 0;  // guest and host side
  std::optional<sizing::Limits> pod_limits;
};
void FillIn(const FirstSize& size, persist::SandboxState& state);

laminad::v1::SizingReport ToReport(const sizing::VmPlan& plan);

// Thread-safe; one change of the size at a time. Its lock is held during calls to laminad, QEMU and the
// guest, all of which are bounded; who only asks how the pod is looks into the StateBook.
class PodSize {
 public:
  PodSize(const Config& config, StateBook& book, LaminadClient& laminad)
      : config_(config), book_(book), laminad_(laminad) {}
  ~PodSize() { Detach(); }

  // Before the VM is there. InvalidArgument, OutOfRange, FailedPrecondition name the limit or annotation.
  absl::StatusOr<FirstSize> PlanFirst(const BundleSpec& spec);
  // Goes on where another process stopped: the pod's description, and the book's state.
  absl::Status Restore(const BundleSpec& spec);
  // The VM that is resized and its agent, which must live until Detach. What the cgroup lets the pod have
  // follows its claim from here on.
  void Attach(vmm::Vm& vm, ttrpc::Caller& agent, vmm::Accel accel);
  // Nothing is asked of the VM any more. Returns when nothing is under way. Idempotent.
  void Detach();

  // A container comes: the VM grows for it, or nothing has changed. `ended`: containers that need nothing any
  // more, though they have not been deleted. laminad's refusal is ResourceExhausted; OutOfRange: the VM was
  // started too small.
  absl::Status Admit(const std::string& id, const BundleSpec& spec, const std::vector<std::string>& ended);
  // It is gone; what it needed is asked back, without waiting for it.
  void Dismiss(const std::string& id);
  // Its limits change (OCI LinuxResources, JSON): first the VM grows, then the container gets them in the
  // guest, then what nobody needs is asked back. On error the old limits hold.
  absl::Status Update(const std::string& id, const std::string& resources_json);

 private:
  absl::Status ReadPod(const BundleSpec& spec) REQUIRES(mutex_);
  absl::Status CheckCgroup(const sizing::VmPlan& plan) const REQUIRES(mutex_);
  // Of the pod, or as declared.
  sizing::CgroupLimits CgroupLimits() const REQUIRES(mutex_);
  // What a VM with a guest of so many bytes is to claim: the host side with it.
  uint64_t ClaimFor(uint64_t guest_bytes) const;
  // Raises the claim to this, durably, or changes nothing.
  absl::Status RaiseClaim(uint64_t bytes) REQUIRES(mutex_);
  // laminad first, then the state.
  absl::Status Retarget(uint64_t claim_bytes) REQUIRES(mutex_);
  // Grows the VM to what `limits` need: laminad is asked first, its refusal changes nothing. Never shrinks.
  absl::Status GrowFor(const sizing::PodLimits& limits) REQUIRES(mutex_);
  absl::Status GrowTo(const sizing::VmPlan& plan, uint64_t hot_bytes) REQUIRES(mutex_);
  absl::Status SetVcpus(uint32_t vcpus, std::chrono::milliseconds timeout) REQUIRES(mutex_);
  // Asks for everything back that limits_ don't need. Waits for no memory; what fails is logged.
  void ShrinkToFit() REQUIRES(mutex_);
  // laminad shows this plan soon, and lowers the claim as the guest gives memory back. Waits for neither.
  void ShowPlan(const sizing::VmPlan& plan) REQUIRES(mutex_);
  // Keeps `limits`, with whatever else of the state has changed.
  absl::Status KeepLimits(const sizing::PodLimits& limits) REQUIRES(mutex_);
  // The claim follows what the guest has really given back, and laminad, should it be away, is told when it
  // is back.
  void WatchMemory();
  bool MemoryIsSettled() REQUIRES(mutex_);
  // What the sandbox's cgroup enforces. OK where there is none.
  absl::Status Enforce(uint64_t claim_bytes) const REQUIRES(mutex_);
  std::string id() const;

  const Config& config_;
  StateBook& book_;
  LaminadClient& laminad_;

  Mutex mutex_;
  CondVar detached_;
  vmm::Vm* vm_ GUARDED_BY(mutex_) = nullptr;  // null: none yet, or no more
  ttrpc::Caller* agent_ GUARDED_BY(mutex_) = nullptr;
  vmm::Accel accel_ GUARDED_BY(mutex_) = vmm::Accel::kTcg;
  vmm::Resizer* resizer_ GUARDED_BY(mutex_) = nullptr;       // null: the VM keeps its size
  sizing::PlanInput plan_input_ GUARDED_BY(mutex_);          // the node's values and the pod's overrides
  std::string cgroup_path_ GUARDED_BY(mutex_);               // under a hierarchy; empty: none
  sizing::CgroupLimits declared_cgroup_ GUARDED_BY(mutex_);  // limits + podFixed, where both are known
  sizing::PodLimits limits_ GUARDED_BY(mutex_);
  std::optional<sizing::VmPlan> unshown_ GUARDED_BY(mutex_);  // laminad shows an older one
  bool watching_memory_ GUARDED_BY(mutex_) = false;
  Threads threads_;
};

}  // namespace lamina::cri
