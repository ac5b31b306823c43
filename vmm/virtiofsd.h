#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace lamina::vmm {

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
  std::string log_path;
  std::vector<std::string> cgroup_procs_files;                   // joined before exec
  std::chrono::milliseconds timeout = std::chrono::seconds(30);  // until its socket is there
};

// Starts virtiofsd on `shared_dir` and returns when its socket is there. Bind mounts made later under
// `shared_dir` are seen by the guest when `shared_dir` is a mount with shared propagation. virtiofsd ends by
// itself when QEMU does. On error nothing is left running.
absl::StatusOr<VirtiofsdProcess> StartVirtiofsd(const VirtiofsdOptions& options);

}  // namespace lamina::vmm
