// Users for VM monitors: each living one has its own.
#pragma once

#include <sys/types.h>

#include <string>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "base/unique_fd.h"

namespace lamina::vmm {

struct VmUser {
  uid_t uid = 0;   // its group has the same number
  UniqueFd claim;  // keeps others from taking it, until a process runs as it
};

// One of `range` that no process runs as. `lock_path`, made where it is missing, is where those who take a
// user at the same time meet. Nothing else is kept: a user is free when its last process is gone, whatever
// that one did. ResourceExhausted: all are taken.
absl::StatusOr<VmUser> TakeVmUser(const UserRange& range, const std::string& lock_path);

}  // namespace lamina::vmm
