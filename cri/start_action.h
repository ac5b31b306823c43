// `containerd-shim-lamina-v2 start`: which socket serves a pod's task.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "base/config.h"
#include "cri/command_line.h"

namespace lamina::cri {

// The descriptor at which the server that StartShim leaves behind finds its listening socket.
inline constexpr int kListenFd = 3;

// The address ("unix://…") of the shim that serves the pod of the task whose bundle is the working directory:
// one that is there, or a new one, which is this program anew with `serve`. The address stands in
// <bundle>/address too. InvalidArgument: a bundle or an id that cannot be; FailedPrecondition: a container
// whose pod has no shim. On error no new server is left.
absl::StatusOr<std::string> StartShim(const CommandLine& line, const Config& config);

}  // namespace lamina::cri
