// What the shim asks of this machine's hypervisor: the seam. A test's is FakeHypervisor.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "base/process.h"
#include "vmm/virtiofsd.h"
#include "vmm/vm.h"
#include "vmm/vm_spec.h"

namespace lamina::vmm {

struct StartOptions {
  std::string netns_path;                       // empty: the caller's
  std::vector<std::string> cgroup_procs_files;  // joined before exec
  int oom_score_adj = 0;                        // as SpawnOptions has it
  int tap_fd = -1;                              // ours; given to QEMU as VmSpec::tap_fd
  // Until its control socket answers.
  std::chrono::milliseconds timeout = std::chrono::seconds(30);
  int cancel_fd = -1;  // an eventfd, say: readable when the start is given up; never read
  OnStarted on_started;
  // QEMU runs as one of them that no other VM has, and owns nothing of the node. Empty: as our user, and owns
  // what we own.
  UserRange users;
  std::string users_lock;  // UsersLock(run_dir), where there are `users`
};

inline std::string UsersLock(const std::string& run_dir) { return run_dir + "/users.lock"; }

// A VM that another process has started and left.
struct Adoption {
  ProcessId process;
  std::string runtime_dir;
  uint64_t boot_memory_bytes = 0;
  // Until its control socket answers.
  std::chrono::milliseconds timeout = std::chrono::seconds(10);
};

// Thread-safe.
class Hypervisor {
 public:
  virtual ~Hypervisor() = default;
  // As CheckGuestImage (guest_image.h), then vmm::ChooseAccel (accel.h).
  virtual absl::StatusOr<Accel> ChooseAccel(const Config& config) = 0;
  // As vmm::StartVirtiofsd (virtiofsd.h).
  virtual absl::StatusOr<VirtiofsdProcess> StartVirtiofsd(const VirtiofsdOptions& options) = 0;
  // Starts a VM and waits until its control socket answers. An error carries the end of its log, and nothing
  // is left running. InvalidArgument: a spec that cannot be; NotFound: a file that is not there. Cancelled:
  // given up by cancel_fd.
  virtual absl::StatusOr<std::unique_ptr<Vm>> Start(const VmSpec& spec, const StartOptions& options) = 0;
  // Goes on with a VM; what it was given so far is read back from itself. Disks that are attached stay until
  // its end, their places are not given to others. Unavailable: it does not live (any more), or does not
  // answer. On error it is left as it is.
  virtual absl::StatusOr<std::unique_ptr<Vm>> Adopt(const Adoption& adoption) = 0;

  // QEMU. Lives as long as the process.
  static Hypervisor& Qemu();
};

}  // namespace lamina::vmm
