// What a small volume of the host holds at one moment: a ConfigMap, a Secret, the pod's hosts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "guest/protocol/contract.h"

namespace lamina::cri {

struct FileEntry {
  enum class Kind { kFolder, kFile, kLink };
  std::string path = {};  // within the volume; empty: the volume itself
  Kind kind = Kind::kFolder;
  uint32_t uid = 0, gid = 0;
  uint32_t mode = 0;                // permission bits
  int64_t modified_unix_nanos = 0;  // of a file
  std::string content = {};         // of a file; where a link points
};

struct FileTree {
  std::vector<FileEntry> entries;  // a folder before what is in it
  uint64_t bytes = 0;              // of content
};

struct FileTreeLimits {
  uint64_t bytes = guest::kMaxKeptBytes;
  size_t files = guest::kMaxKeptFiles;
  size_t entries = guest::kMaxKeptEntries;
  size_t depth = guest::kMaxKeptDepth;
};

// The folder or file at `source`, whose own path may lead through links. Links in it are kept as they are and
// never followed, so that nothing outside is read. What changes while it is read is read again, three times
// in all. The kubelet's "..data_tmp", half of a swap, is left out. Errors name the path: NotFound, no such
// source; ResourceExhausted, it is over a limit; InvalidArgument, it holds something that is no folder, file
// or link; FailedPrecondition, something is mounted in it; Unavailable, it never stood still. Thread-safe.
absl::StatusOr<FileTree> ReadFileTree(const std::string& source, const FileTreeLimits& limits = {});

// A number that is another one when something of what ReadFileTree reads has changed; only looks at
// attributes. The same errors.
absl::StatusOr<uint64_t> FileTreeStamp(const std::string& source);

}  // namespace lamina::cri
