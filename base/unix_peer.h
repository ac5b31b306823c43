// Who stands at the other end of a unix socket, and whether he may ask anything.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace lamina {

struct UnixPeer {
  pid_t pid = 0;  // 0: in a pid namespace that we do not see
  uid_t uid = 0;
};

// As the kernel noted it when he connected (SO_PEERCRED).
absl::StatusOr<UnixPeer> PeerOf(int fd);

// Root and the user that this process runs as may ask; nobody else.
bool MayAsk(const UnixPeer& peer);

// Keeps out who may not ask, however he came to reach the socket. For one thread at a time.
class Doorkeeper {
 public:
  // Takes a connection that was accepted at `door` (for the log) while `others` are open, and gives it back,
  // or closes it: its peer may not ask, or there are `most` already. The log says so, with user and process,
  // at most once a minute.
  UniqueFd Admit(UniqueFd accepted, const std::string& door, size_t others, size_t most);

 private:
  void Complain(const std::string& what);

  std::chrono::steady_clock::time_point next_complaint_{};
  uint64_t unsaid_ = 0;
};

}  // namespace lamina
