// What stands on REST's port: it bounds what a client may send, hold and delay, before cpprestsdk hears of
// it. Only GET and HEAD without a body, by those who have the token, are passed on.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "node/inner_network.h"
#include "node/rest_credentials.h"
#include "node/rest_limits.h"

namespace lamina::node {

class RestFront {
 public:
  struct Options {
    std::string address;                  // HOST:PORT; port 0: any
    std::vector<std::string> open_paths;  // answered without a token
    RestLimits limits;
  };

  // Takes the address. Unavailable, naming it, when it cannot be listened at.
  static absl::StatusOr<std::unique_ptr<RestFront>> Bind(Options options, RestCredentials credentials);
  ~RestFront();  // closes all connections

  // Serves on a thread of its own, in `network`. `secret` and `inner_port` are RestListener's.
  // ResourceExhausted when the thread cannot be made.
  absl::Status Serve(const InnerNetwork& network, uint16_t inner_port, std::string secret);

  uint16_t port() const;
  // True: only processes of this node reach it.
  bool loopback() const;

 private:
  class Impl;
  explicit RestFront(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::node
