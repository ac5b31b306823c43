// Sockets in the guest that stand for sockets of the host, at <root>/sockets/<name>. The host is asked by
// nobody: it waits for connections here, and joins each with one that it makes itself.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "guest/protocol/stdio_mux.h"

namespace lamina::agent::v1 {
class JoinSocketRequest;
class OfferSocketRequest;
}  // namespace lamina::agent::v1

namespace lamina::guest {

// Thread-safe.
class HostSockets {
 public:
  HostSockets(std::string root, StdioMux& mux) : directory_(std::move(root) + "/sockets"), mux_(mux) {}
  ~HostSockets() { Close(); }

  // Makes the socket; it has the owner and mode of the host's. Repeated: OK. ResourceExhausted: too many.
  absl::Status Offer(const agent::v1::OfferSocketRequest& request);
  // Blocks until somebody connects to it; gives the connection's number. The last kMaxWaitingConnections are
  // kept for Join, older ones are closed. Cancelled: Close was called. NotFound: no such socket.
  absl::StatusOr<uint64_t> Accept(const std::string& name);
  // Joins a connection with a stream of the mux; 0: closes it. NotFound: there is none (any more).
  absl::Status Join(const agent::v1::JoinSocketRequest& request);
  // All sockets go, connections that were joined stay; Accept returns.
  void Close();

 private:
  struct Offered {
    UniqueFd listener, stop;  // stop: readable once it is over
    std::map<uint64_t, UniqueFd> waiting;
    uint64_t next = 1;
  };

  const std::string directory_;
  StdioMux& mux_;
  Mutex mutex_;
  bool closed_ GUARDED_BY(mutex_) = false;
  std::map<std::string, std::shared_ptr<Offered>> offered_ GUARDED_BY(mutex_);
};

}  // namespace lamina::guest
