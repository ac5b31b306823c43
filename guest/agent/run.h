// From the first instruction of the agent to its last: boot, serve, reap, shut down.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::guest {

struct RunOptions {
  bool boot = true;  // PID 1 of the guest: mounts, modules, ports; powers off at the end
  // Without boot: unix sockets on which the agent listens. The stdio socket is connected to first, once.
  std::string rpc_socket, stdio_socket;
  std::string root = "/run/lamina";
};

// "--rpc-socket PATH", "--stdio-socket PATH", "--root DIR", "--no-boot". InvalidArgument says what is wrong.
absl::StatusOr<RunOptions> ParseArguments(int argc, char** argv);

// Runs until a Shutdown call or a signal. As PID 1 it does not return: it powers the machine off, also on
// error.
absl::Status RunAgent(const RunOptions& options);

}  // namespace lamina::guest
