#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace lamina::cri {

// How containerd calls a shim: Go-style flags (-id X or --id=X), then start, delete or nothing.
struct CommandLine {
  std::string ns, address, publish_binary, id, bundle, action;
  bool debug = false, info = false, version = false;
};

// Unknown flags with a value are ignored (newer containerd may add some). InvalidArgument: a flag without its
// value, an id or a namespace that is unsafe as a file name.
absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments);

// `id` itself up to `max_length` (at least 16) characters; a longer one's beginning and a hash, so that ids
// that begin alike stay apart.
std::string ShortId(const std::string& id, size_t max_length);

// The socket of a sandbox's shim; short enough for a unix socket path.
std::string ShimSocket(const std::string& run_dir, const std::string& ns, const std::string& sandbox_id);

}  // namespace lamina::cri
