// What a running process may do, as the kernel shows it in /proc.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace lamina {

struct ProcessRights {
  std::set<uid_t> users, groups;  // real, effective, saved and file system's; groups: its further ones too
  // A bit for each capability in any of its sets (inheritable, permitted, effective, ambient), and of the
  // bounding set.
  uint64_t capabilities = 0, bounding = 0;
  bool no_new_privs = false;
  bool filtered = false;             // by seccomp
  std::set<std::string> namespaces;  // "mnt", "pid", …: those that are not the other process's
  bool own_root = false;             // its root directory is not the other process's
  std::vector<std::string> root;     // what is in its root directory, sorted
  uint64_t core_bytes = 0;           // its limit; UINT64_MAX: none
  int oom_score_adj = 0;
  std::vector<std::string> environment;
};

// Of `pid`, compared with the living process `other`. NotFound: one of them is not there (any more), or is a
// zombie. Needs the rights of ptrace over both.
absl::StatusOr<ProcessRights> ReadProcessRights(pid_t pid, pid_t other);

}  // namespace lamina
