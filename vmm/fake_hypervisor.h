// A hypervisor that a test plays. Its VMs and virtiofsds are real processes that only sleep, so that what
// watches, names or kills them by pid does so for real.
//
//   FakeHypervisor hypervisor;
//   hypervisor.FailAt(2, absl::UnavailableError("QMP: QEMU is gone"));   the third call
//   auto vm = hypervisor.Start(spec, options);
//   EXPECT_THAT(hypervisor.calls(), ElementsAre("ChooseAccel", "StartVirtiofsd /run/x/shared", "Start
//   pod-1")); hypervisor.EndVm();                                                  WaitExit returns
//
// A call is what reaches the hypervisor and may fail: ChooseAccel, StartVirtiofsd, Start, Adopt; of a VM
// AttachArena, AddController, AddDisk, RemoveDisk (what ScsiDisks makes of Map and Unmap), PlugVcpus, Memory,
// RequestMemory, GrowMemory, Kill. Each is written down with what it is about.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/hypervisor.h"

namespace lamina::vmm {

struct FakeWorld;

// Thread-safe; outlives its VMs.
class FakeHypervisor : public Hypervisor {
 public:
  FakeHypervisor();
  // Ends and reaps what still runs.
  ~FakeHypervisor() override;

  absl::StatusOr<Accel> ChooseAccel(const Config& config) override;
  absl::StatusOr<VirtiofsdProcess> StartVirtiofsd(const VirtiofsdOptions& options) override;
  absl::StatusOr<std::unique_ptr<Vm>> Start(const VmSpec& spec, const StartOptions& options) override;
  // Of the last VM that was started.
  absl::StatusOr<std::unique_ptr<Vm>> Adopt(const Adoption& adoption) override;

  // The calls so far, in order.
  std::vector<std::string> calls() const;
  // How many of them begin with `what`.
  int Count(std::string_view what) const;
  // The call with this number (from 0; negative: none) does nothing and answers `error`.
  void FailAt(int number, absl::Status error = absl::UnavailableError("injected: QEMU is gone"));
  // Runs within each call before it does anything, without a lock: it may block, or fail the call.
  void BeforeEach(std::function<absl::Status(const std::string& call)> hook);

  // The process ends, as when QEMU crashes or the guest powers off. Of the last one started.
  void EndVm();
  void EndVirtiofsd();
  // The next `times` Kills of a VM find that it does not die.
  void KillTimesOut(int times);
  // The next Start's QEMU does not answer: it is over when it is given up, or at its timeout.
  void StartHangs();
  // The guest takes no more virtio-mem than this; before, it takes what it is asked to.
  void GuestHoldsAtMost(uint64_t hot_memory_bytes);

  // How many of the processes that were started live.
  size_t processes() const;
  // What the last Start was asked for.
  VmSpec spec() const;

 private:
  const std::shared_ptr<FakeWorld> world_;
};

}  // namespace lamina::vmm
