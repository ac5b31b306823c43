// cpprestsdk lives behind this header and node/inner_network.h only (its upstream is archived; it can be
// replaced there).
#pragma once

#include <cstdint>
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

// The field in which the front says the secret.
inline constexpr char kSecretField[] = "X-Lamina-Front";

class RestListener {
 public:
  // On the loopback of InnerNetwork, which has been made. Who does not say `secret` gets 403. Unavailable
  // when the port is taken.
  static absl::StatusOr<std::unique_ptr<RestListener>> Listen(uint16_t port, std::string secret,
                                                              RestHandler handler);
  virtual ~RestListener() = default;  // closes
};

}  // namespace lamina::node
