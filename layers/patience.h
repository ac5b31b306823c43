// How long the caller of something slow goes on waiting for it.
#pragma once

#include <chrono>
#include <stop_token>
#include <string_view>

#include "absl/status/status.h"

namespace lamina::layers {

struct Patience {
  std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();
  std::stop_token stop;
  // OK while it lasts; then Cancelled or DeadlineExceeded, with `what` was being done before the rest.
  absl::Status Check(std::string_view what) const;
};

}  // namespace lamina::layers
