#pragma once

#include <sys/types.h>

#include <chrono>
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

// Starts virtiofsd on `shared_dir` and returns when its socket is there. Bind mounts made later under
// `shared_dir` are seen by the guest when `shared_dir` is a mount with shared propagation. virtiofsd ends by
// itself when QEMU does. On error nothing is left running.
absl::StatusOr<VirtiofsdProcess> StartVirtiofsd(const std::string& program, const std::string& shared_dir,
                                                const std::string& socket, const std::string& log_path,
                                                const std::vector<std::string>& cgroup_procs_files,
                                                std::chrono::milliseconds timeout);

}  // namespace lamina::vmm
