#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace lamina::vmm {

// Told of a process right after its fork and exec, before it is waited for: so that it can be written down
// before anything else happens. An error ends the process and is returned. Empty: nobody is told.
using OnStarted = std::function<absl::Status(pid_t pid, uint64_t start_time)>;

struct VirtiofsdProcess {
  pid_t pid = 0;
  uint64_t start_time = 0;
  UniqueFd pidfd;
  std::string socket;
};

struct VirtiofsdOptions {
  std::string program;
  std::string shared_dir;
  std::string socket;
  std::string log_path;  // VirtiofsdLog(runtime_dir), where Vm::WaitExit keeps it short
  std::vector<std::string> cgroup_procs_files;  // joined before exec
  int oom_score_adj = 0;                        // as SpawnOptions has it
  OnStarted on_started;
};

// Starts virtiofsd on `shared_dir` and returns when the program runs; its socket takes a connection from then
// on, and refuses it when virtiofsd has ended: its log says why. Bind mounts made later under `shared_dir`
// are seen by the guest when `shared_dir` is a mount with shared propagation. virtiofsd ends by itself when
// QEMU does. It is confined (virtiofsd_confinement.h); where the node does not let it be, it is less, and a
// warning says so. On error nothing is left running. NotFound: the program or `shared_dir` is missing.
absl::StatusOr<VirtiofsdProcess> StartVirtiofsd(const VirtiofsdOptions& options);

}  // namespace lamina::vmm
