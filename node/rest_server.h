// laminad's REST: cpprestsdk's listener, out of reach, behind a front that bounds what a client may do.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "node/rest_credentials.h"
#include "node/rest_front.h"
#include "node/rest_limits.h"
#include "node/rest_listener.h"

namespace lamina::node {

struct RestOptions {
  std::string address;  // "127.0.0.1:9477"; port 0: any
  RestFiles files;
  std::vector<std::string> open_paths;  // answered without a token
  RestLimits limits;
};

class RestServer {
 public:
  // GET and HEAD reach the handler, as GET; others get 405. Unavailable when the port is taken,
  // ResourceExhausted when its threads cannot be made; a file's error names it. What weakens it is in the
  // log.
  static absl::StatusOr<std::unique_ptr<RestServer>> Listen(RestOptions options, RestHandler handler);

  uint16_t port() const { return front_->port(); }

 private:
  RestServer(std::unique_ptr<RestListener> listener, std::unique_ptr<RestFront> front)
      : listener_(std::move(listener)), front_(std::move(front)) {}

  // The front ends first.
  const std::unique_ptr<RestListener> listener_;
  const std::unique_ptr<RestFront> front_;
};

}  // namespace lamina::node
