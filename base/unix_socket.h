// Stream sockets by path. Paths are at most kMaxSocketPath bytes; a longer one is InvalidArgument everywhere.
#pragma once

#include <sys/un.h>

#include <chrono>
#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace lamina {

inline constexpr size_t kMaxSocketPath = sizeof(sockaddr_un::sun_path) - 1;

// InvalidArgument, with the path, when it is empty or too long for a socket.
absl::Status CheckSocketPath(const std::string& path);

// A blocking stream, closed on exec. NotFound: no such file. Unavailable: nobody listens, or who listens has
// accepted nobody for `timeout`.
absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path,
                                     std::chrono::milliseconds timeout = std::chrono::seconds(10));

// True when somebody listens at `path`, however long he has accepted nobody. Never waits.
bool SomebodyListens(const std::string& path);

// A blocking listener, closed on exec, that only its owner can connect to (0600). A socket that stands at
// `path` already is replaced, whoever it belonged to; any other file is not: AlreadyExists.
absl::StatusOr<UniqueFd> ListenUnix(const std::string& path, int backlog = 128);

}  // namespace lamina
