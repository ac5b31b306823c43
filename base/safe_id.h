// Ids that become file names, arguments and parts of paths: sandboxes, containers, execs.
#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace lamina {

// 1 to 128 of letters, digits, '.', '_', '-', the first a letter or digit: never "." or "..", hidden, or
// taken for an option. Wider than what containerd allows.
bool IsSafeId(std::string_view id);

// InvalidArgument for others; `what` ("container id") begins the message.
absl::Status CheckSafeId(std::string_view id, std::string_view what);

}  // namespace lamina
