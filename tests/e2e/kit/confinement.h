// Whether the processes of a pod on the host are confined.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace lamina::e2e {

// Of a pod of Lamina whose states lie in `state_dir`; OK for a pod of another runtime. Internal names each
// thing that a process has and should not.
absl::Status CheckConfinement(const std::string& state_dir, const std::string& pod);

}  // namespace lamina::e2e
