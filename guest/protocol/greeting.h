// The first words of a host to a guest's agent.
#pragma once

#include <chrono>

#include "absl/status/statusor.h"
#include "base/ttrpc/method.h"
#include "proto/agent.pb.h"

namespace lamina::guest {

// Says hello: gives the guest a random seed, checks that the agent speaks our protocol, and sets the guest's
// clock (clock_sync.h). `timeout` may span the boot: the request waits in the port until the agent is there.
// To be repeated on each new connection. FailedPrecondition when the guest speaks another protocol; else the
// calls' errors.
absl::StatusOr<agent::v1::HelloResponse> Greet(ttrpc::Caller& agent, std::chrono::nanoseconds timeout);

}  // namespace lamina::guest
