#include "layers/patience.h"

#include "base/status.h"

namespace lamina::layers {

absl::Status Patience::Check(std::string_view what) const {
  if (stop.stop_requested()) {
    return MakeStatus(absl::StatusCode::kCancelled,
                      "{}: given up: the sandbox was released, or its caller has gone", what);
  }
  if (deadline != std::chrono::steady_clock::time_point::max() &&
      std::chrono::steady_clock::now() >= deadline) {
    return MakeStatus(absl::StatusCode::kDeadlineExceeded, "{}: not done within the caller's deadline", what);
  }
  return absl::OkStatus();
}

}  // namespace lamina::layers
