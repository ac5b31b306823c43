// The front's way to the inner listener: a connection for each call, so many at a time.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "node/rest_limits.h"
#include "node/rest_listener.h"

namespace lamina::node {

// Used by the thread that runs `io`, which has entered the InnerNetwork. `io` outlives it; once the relay is
// gone `io` may be destroyed, but not run any more.
class RestRelay {
 public:
  // Called once, later, on the same thread. Unavailable: the inner listener does not answer.
  // DeadlineExceeded: not in time. ResourceExhausted: the answer is too long.
  using Done = std::function<void(absl::StatusOr<RestAnswer>)>;

  RestRelay(boost::asio::io_context& io, uint16_t port, std::string secret, const RestLimits& limits)
      : io_(io), port_(port), secret_(std::move(secret)), limits_(limits) {}

  void Get(std::string target, Done done);

 private:
  class Call;
  struct Waiting {
    std::string target;
    Done done;
  };
  void Start(std::string target, Done done);
  void Ended();

  boost::asio::io_context& io_;
  const uint16_t port_;
  const std::string secret_;
  const RestLimits limits_;
  size_t running_ = 0;
  std::deque<Waiting> waiting_;
};

}  // namespace lamina::node
