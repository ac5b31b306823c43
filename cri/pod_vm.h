// The pod's virtual machine, from its start to its end: QEMU, virtiofsd, the agent's connection, the streams.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/config.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "cri/agent_link.h"
#include "cri/laminad_client.h"
#include "cri/oci_spec.h"
#include "cri/pod_size.h"
#include "cri/state_book.h"
#include "guest/protocol/clock_sync.h"
#include "guest/protocol/stdio_mux.h"
#include "vmm/balloon_door.h"
#include "vmm/hypervisor.h"

namespace lamina::cri {

// When a caller stops waiting; none: it waits as long as it takes.
using Deadline = std::optional<std::chrono::steady_clock::time_point>;

// What the VM is reached through; replaced in tests.
struct VmDoors {
  vmm::Hypervisor& hypervisor;
  // Connections to the agent's ports, by the path of the socket.
  std::function<absl::StatusOr<std::unique_ptr<ttrpc::Caller>>(const std::string&)> dial_agent;
  std::function<absl::StatusOr<UniqueFd>(const std::string&)> dial_stdio;

  guest::ClockKeeperOptions clock = {};

  static VmDoors Real();
};

// Thread-safe, but that vm(), agent() and mux() are there only after a Start that was OK, until the end of
// this object.
class PodVm {
 public:
  // `given_up`: called once, on any thread, when the guest does not answer any more, with the reason.
  PodVm(const Config& config, StateBook& book, LaminadClient& laminad, VmDoors doors,
        std::function<void(const absl::Status&)> given_up);
  ~PodVm();

  // Starts it, in the steps of docs/shim.md. The book holds the claim and the runtime directory; what each
  // step makes is written there before it exists or as soon as it does, so that CleanUpSandbox can undo all
  // of it, here or in another process. Fills in the phases of `ready`. Cancelled: Abort was called;
  // DeadlineExceeded: the guest did not answer in time. On error the processes may still live.
  absl::Status Start(const BundleSpec& spec, const FirstSize& size, const laminad::v1::ClaimResponse& claim,
                     Deadline deadline, laminad::v1::ReadyRequest& ready);
  // Goes on where another process stopped: with the VM that the book's state names, its agent greeted anew.
  // `timeout`: for its answer. Unavailable: it does not live, or virtiofsd does not. On error the VM is left
  // as it is.
  absl::Status Restore(std::chrono::nanoseconds timeout);
  // After a Start that failed, once its processes are gone: as if it had never been called.
  void Drop();
  // A Start under way, or one to come, fails soon.
  void Abort();

  vmm::Vm& vm() { return *vm_; }
  ttrpc::Caller& agent() { return link_; }
  guest::StdioMux& mux() { return *mux_; }
  // How it runs; of the same life as vm().
  vmm::Accel accel() const { return accel_; }
  // OK while it lives, else why it is gone; FailedPrecondition before its start.
  absl::Status Alive() const;

  // Asks the guest to write back what it holds, at most 2 s, then ends the VM and sees it dead.
  // DeadlineExceeded: it does not die; to be called again.
  absl::Status Stop();
  // The same without asking.
  absl::Status Kill();
  // Blocks until QEMU has ended. virtiofsd's end is the VM's: whoever touched a volume would wait for ever.
  void WaitEnd();

 private:
  struct Recipe;
  absl::Status MakeDirectories(Recipe& recipe);
  absl::Status MakeCgroup(Recipe& recipe);
  absl::Status MakeNetwork(Recipe& recipe);
  absl::Status ShareFiles(Recipe& recipe);
  absl::Status LaunchVm(Recipe& recipe);
  absl::Status GreetAgent(Recipe& recipe);
  absl::Status ConfigureGuest(Recipe& recipe);
  absl::StatusOr<agent::v1::HelloResponse> Greet(const std::string& runtime_dir,
                                                 std::chrono::nanoseconds timeout);
  bool aborted() const;

  const Config& config_;
  StateBook& book_;
  LaminadClient& laminad_;
  const VmDoors doors_;
  const UniqueFd abort_;  // readable once Abort was called
  std::string rpc_socket_;
  AgentLink link_;
  mutable Mutex mutex_;
  bool aborted_ GUARDED_BY(mutex_) = false;
  vmm::Accel accel_ = vmm::Accel::kTcg;
  std::unique_ptr<vmm::Vm> vm_;                     // set once, by Start
  std::unique_ptr<vmm::BalloonDoor> balloon_door_;  // ends before the VM that it serves
  UniqueFd virtiofsd_pidfd_;
  std::unique_ptr<guest::StdioMux> mux_;
  std::unique_ptr<guest::ClockKeeper> clock_keeper_;  // ends before the link that it calls
};

}  // namespace lamina::cri
