// Threads that may not come to be: where the kernel gives none, the call that wanted one fails, not the
// process.
#pragma once

#include <cstddef>
#include <functional>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::ttrpc {

// Runs `body` on a detached thread with a small stack: a shim has many sleeping calls and little memory.
// ResourceExhausted when the kernel gives none.
absl::Status StartThread(size_t stack_bytes, std::function<void()> body);

// Runs `body` on a thread with the usual stack, to be joined or detached; std::thread itself would throw.
// ResourceExhausted when the kernel gives none.
absl::StatusOr<std::thread> NewThread(std::function<void()> body);

}  // namespace lamina::ttrpc
