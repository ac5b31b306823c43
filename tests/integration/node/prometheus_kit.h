// A Prometheus of its own that scrapes one laminad every second.
#pragma once

#include <sys/types.h>

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "tests/integration/node/node_kit.h"

namespace lamina::node {

class Prometheus {
 public:
  // Lives in the laminad's private folder, under job "lamina".
  explicit Prometheus(const Laminad& laminad);
  ~Prometheus();  // ends it
  Prometheus(const Prometheus&) = delete;
  Prometheus& operator=(const Prometheus&) = delete;

  absl::Status Start();
  // The answer's "result"; an empty list while there is none. An expression that Prometheus refuses is in
  // `error`.
  nlohmann::json Query(const std::string& expression, std::string* error = nullptr) const;
  std::string Log() const;

 private:
  const std::string directory_, target_, address_;
  pid_t pid_ = 0;
};

}  // namespace lamina::node
