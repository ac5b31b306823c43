// cpprestsdk lives behind this header only (its upstream is archived; it can be replaced in one file).
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace lamina::node {

struct RestAnswer {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
};

// path without query -> answer. Called from two threads.
using RestHandler = std::function<RestAnswer(const std::string& path)>;

class RestServer {
 public:
  // `address`: "127.0.0.1:9477". GET and HEAD reach the handler, others get 405. Unavailable when the port is
  // taken, ResourceExhausted when its threads cannot be made.
  static absl::StatusOr<std::unique_ptr<RestServer>> Listen(const std::string& address, RestHandler handler);
  virtual ~RestServer() = default;  // closes
};

}  // namespace lamina::node
