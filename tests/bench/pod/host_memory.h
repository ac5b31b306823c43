// What the host's /proc says of a process' memory.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace lamina::bench {

struct MappedBytes {
  uint64_t resident = 0;      // Rss
  uint64_t proportional = 0;  // Pss: each page divided by the number of processes that have it mapped
};

// The whole process. NotFound when it is gone.
absl::StatusOr<MappedBytes> ProcessMemory(pid_t pid);
// Its mappings of the files whose path begins with `prefix`.
absl::StatusOr<MappedBytes> MappingMemory(pid_t pid, const std::string& prefix);
// The same from the text of an smaps file. Pure.
MappedBytes SumMappings(const std::string& smaps, const std::string& prefix);

// CPU seconds, user and system, that the process has used.
absl::StatusOr<double> CpuSeconds(pid_t pid);

// What the files below `dir` occupy on disk (blocks, not lengths).
uint64_t BytesOnDisk(const std::string& dir);

}  // namespace lamina::bench
