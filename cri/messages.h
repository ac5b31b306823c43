// containerd's messages, made of what the shim knows.
#pragma once

#include <cstdint>

#include "cri/process.h"
#include "proto/agent.pb.h"
#include "proto/containerd/task.pb.h"

namespace lamina::cri {

containerd::Timestamp ToTimestamp(int64_t unix_nanos);

// Statistics as Task.Stats and SandboxMetrics give them: an Any of io.containerd.cgroups.v2.Metrics.
containerd::Any MetricsOf(const agent::v1::ContainerStats& stats);

// The event /tasks/exit; `pid` is the one that containerd was told.
containerd::TaskExit ExitEvent(const Process& process, uint32_t pid, ExitInfo exit);

}  // namespace lamina::cri
