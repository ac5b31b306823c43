// containerd 2.x's Sandbox service: the pod as a whole, beside the Task service for its containers.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "base/ttrpc/server.h"
#include "cri/oci_spec.h"
#include "cri/sandbox.h"
#include "proto/containerd/sandbox.pb.h"

namespace lamina::cri {

// The pod as CreateSandbox describes it, in the terms of a sandbox's config.json. InvalidArgument: options of
// another type, or numbers that cannot be. Pure.
absl::StatusOr<BundleSpec> SpecFromPodConfig(const containerd::CreateSandboxRequest& request);

// CreateSandbox keeps the description, StartSandbox builds the VM, StopSandbox ends it, ShutdownSandbox
// removes what is left and runs `shut_down`. Every call may be repeated.
void RegisterSandboxService(ttrpc::Server& server, Sandbox& sandbox, std::function<void()> shut_down);

}  // namespace lamina::cri
