// Calls with their types: which service and method, what goes in, what comes out. Whoever calls sees a Caller
// only; tests put a FakeCaller (fake_caller.h) in the place of the connection.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace google::protobuf {
class MessageLite;
}

namespace lamina::ttrpc {

// No deadline: waits as long as the connection lives.
inline constexpr std::chrono::nanoseconds kNoTimeout{0};

// One method of a service and the lite messages that it takes and gives.
template <typename Request, typename Response>
struct Method {
  const char* service;
  const char* name;
};

// Thread-safe.
class Caller {
 public:
  virtual ~Caller() = default;

  // service "containerd.task.v2.Task", method "Create". Fills `response`, null: what is answered is dropped.
  // Errors: the peer's own status; DeadlineExceeded after `timeout`; Unavailable when the connection is lost;
  // Internal when the answer does not parse.
  virtual absl::Status Call(std::string_view service, std::string_view method,
                            const google::protobuf::MessageLite& request,
                            google::protobuf::MessageLite* response, std::chrono::nanoseconds timeout,
                            const std::map<std::string, std::string>& metadata = {}) = 0;

  // Fails the calls that are under way with Cancelled; later ones are made as ever.
  virtual void CancelCalls() = 0;
  // Fails the calls that are under way, and all later ones, with Cancelled.
  virtual void Close() = 0;
  // False once the connection is lost: then every call answers Unavailable.
  virtual bool connected() const = 0;
};

template <typename Request, typename Response>
absl::StatusOr<Response> Call(Caller& caller, const Method<Request, Response>& method, const Request& request,
                              std::chrono::nanoseconds timeout) {
  Response response;
  const absl::Status status = caller.Call(method.service, method.name, request, &response, timeout);
  if (!status.ok()) return status;
  return response;
}

}  // namespace lamina::ttrpc
