// Threads with small stacks: a shim has many sleeping calls and little memory.
#pragma once

#include <cstddef>
#include <functional>

#include "absl/status/status.h"

namespace lamina::ttrpc {

// Runs `body` on a detached thread. ResourceExhausted when the kernel gives none.
absl::Status StartThread(size_t stack_bytes, std::function<void()> body);

}  // namespace lamina::ttrpc
