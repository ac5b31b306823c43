#pragma once

#include <functional>
#include <string>

#include "base/ttrpc/server.h"
#include "cri/events.h"
#include "cri/sandbox.h"

namespace lamina::cri {

// Registers containerd's Task service, v2 and v3, over the sandbox. `shut_down` runs once containerd has
// asked for the end and nothing is left.
void RegisterTaskService(ttrpc::Server& server, Sandbox& sandbox, EventPublisher& events,
                         std::function<void()> shut_down);

}  // namespace lamina::cri
