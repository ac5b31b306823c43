// A connected socket as a stream of the mux: for a connection whose two ends lie in host and guest.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "base/unique_fd.h"
#include "guest/protocol/stdio_mux.h"

namespace lamina::guest {

// Both sides call it with the same stream and their end's socket. Each direction ends by itself, as with one
// socket: who sends no more is seen to have ended, who receives no more breaks what is sent. The socket is
// closed when both are over; `held` is let go of then. Errors as AttachSource's; then nothing of it is left.
absl::Status JoinSocketStream(StdioMux& mux, uint32_t stream, UniqueFd socket,
                              std::shared_ptr<void> held = nullptr);

}  // namespace lamina::guest
