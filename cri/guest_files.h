// Files that a pod's guest keeps for the host: to it, and back from it.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "base/ttrpc/method.h"
#include "cri/file_tree.h"

namespace lamina::cri {

// Where the guest shows the volume: a folder or a file, as `tree` was.
std::string KeptFilesPath(const std::string& volume);

// The volume in the guest becomes `tree`, all of it or, on error, nothing; sent in requests of a quarter of a
// MiB. Made again from its beginning when the connection was lost on the way. Thread-safe, but for one volume
// one call at a time.
absl::Status PutFiles(ttrpc::Caller& agent, const std::string& volume, const FileTree& tree);

// The same with what is at `source` now; errors of ReadFileTree too.
absl::Status PushFiles(ttrpc::Caller& agent, const std::string& volume, const std::string& source);

// Writes the end of a volume that is a file, at most 64 KiB, into the host's file `path`, which is there and
// is no link. FailedPrecondition: it is something else.
absl::Status BringFile(ttrpc::Caller& agent, const std::string& volume, const std::string& path);

}  // namespace lamina::cri
