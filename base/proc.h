// What the kernel says in /proc, taken apart.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace lamina {

// "MemTotal:   24 kB" -> bytes, in the text of /proc/meminfo, of /proc/<pid>/status, or of a NUMA node's
// meminfo, whose lines begin with "Node 0". 0 when the key is not there.
uint64_t KernelBytes(std::string_view text, std::string_view key);

struct MountEntry {
  std::string device;  // "8:1"
  std::string root;    // of the file system, what is mounted of it
  std::string point;
  std::string type, source;
};
// The text of /proc/<pid>/mountinfo, in its order: what comes later lies above. Lines of another form are
// left out.
std::vector<MountEntry> ParseMountinfo(std::string_view text);

// The file of the program that runs. One that was replaced ends in " (deleted)".
absl::StatusOr<std::string> OwnProgram();

}  // namespace lamina
