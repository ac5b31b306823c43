// A ttrpc client on one connection: containerd's events, laminad, the guest's agent.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace google::protobuf {
class MessageLite;
}

namespace lamina::ttrpc {

// No deadline: waits as long as the connection lives.
inline constexpr std::chrono::nanoseconds kNoTimeout{0};

// Thread-safe; calls from many threads share the connection and are answered in any order. One reader thread
// inside, with a small stack.
class Client {
 public:
  // Owns a connected stream socket (or the host end of a virtio-serial port). `name` stands in errors
  // ("laminad", "agent").
  static std::unique_ptr<Client> FromFd(UniqueFd fd, std::string name);
  // Unavailable when nobody listens at the unix socket `path`.
  static absl::StatusOr<std::unique_ptr<Client>> Dial(const std::string& path, std::string name);
  ~Client();  // fails the calls under way with Cancelled

  // service "containerd.task.v2.Task", method "Create". Fills `response`. Errors: the peer's own status;
  // DeadlineExceeded after `timeout` (sent along as timeout_nano; a late answer is dropped); Unavailable when
  // the connection is lost; Internal when the answer does not parse. A peer that does not read holds the
  // caller at most until the deadline.
  absl::Status Call(std::string_view service, std::string_view method,
                    const google::protobuf::MessageLite& request, google::protobuf::MessageLite* response,
                    std::chrono::nanoseconds timeout,
                    const std::map<std::string, std::string>& metadata = {});

  // False once the connection is lost (then every call answers Unavailable).
  bool connected() const;

 private:
  class Impl;
  explicit Client(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace lamina::ttrpc
