// A root of its own for a child process: what it must open by path, and nothing else of the node.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina {

// What must be there for an ELF program to start: itself, its loader, its libraries. The loader is asked; the
// program does not run. InvalidArgument for what is no 64-bit ELF program.
absl::StatusOr<std::vector<std::string>> ProgramFiles(const std::string& path);

// An empty, read-only tmpfs with files of the node, each mounted on its own: what is mounted below one of
// them is not there. Filled by the parent; Enter is the child's.
class PrivateRoot {
 public:
  struct Mount {
    std::string from, to;  // `to`: relative to the root
    bool directory = false;
    uint64_t attributes = 0;
  };

  // The file or directory `from` at the absolute path `to`, with these MOUNT_ATTR_…. NotFound: it is not
  // there.
  absl::Status Add(const std::string& from, const std::string& to, uint64_t attributes);
  // A procfs at /proc with the processes that its reader may ptrace, and nothing but processes.
  void AddProc();
  // A node for the character device `number` at the absolute path `to`, for `owner` alone.
  void AddDevice(const std::string& to, dev_t number, uid_t owner);
  const std::vector<Mount>& mounts() const { return mounts_; }

  // In a child with a mount namespace of its own: system calls only. Null, or the step that failed (errno
  // says why).
  const char* Enter() const;

 private:
  struct Device {
    std::string to;
    dev_t number;
    uid_t owner;
  };

  const char* Fill(int root) const;

  std::vector<std::string> directories_;  // parents first
  std::vector<Mount> mounts_;
  std::vector<Device> devices_;
  bool proc_ = false;
};

// Both in a child, system calls only, a bit for each capability that stays. Null, or the step that failed.
// The first wants CAP_SETPCAP; without it no_new_privs must keep an exec from taking what is in that set.
void DropBoundingCapabilities(uint64_t keep);
const char* DropCapabilities(uint64_t keep);

}  // namespace lamina
