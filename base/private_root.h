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
// them is not there, unless it was added as a tree. Filled by the parent; Enter is the child's.
class PrivateRoot {
 public:
  struct Mount {
    std::string from, to;  // `to`: relative to the root
    bool directory = false;
    uint64_t attributes = 0;
    bool tree = false;
  };

  // The file or directory `from` at the absolute path `to`, with these MOUNT_ATTR_…. NotFound: it is not
  // there.
  absl::Status Add(const std::string& from, const std::string& to, uint64_t attributes);
  // The same of a directory with what is mounted below it. Where `from` is a mount with shared propagation,
  // what the node mounts and unmounts there later comes and goes here too, with the attributes that it has
  // there; nothing goes the other way.
  absl::Status AddTree(const std::string& from, const std::string& to, uint64_t attributes);
  // A procfs at the absolute path `to`, of one part, with the processes that its reader may ptrace, and
  // nothing but processes.
  void AddProc(const std::string& to = "/proc");
  // A symbolic link at the absolute path `to`.
  void AddLink(const std::string& to, const std::string& target);
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
  struct Link {
    std::string to, target;
  };

  const char* Fill(int root) const;

  std::vector<std::string> directories_;  // parents first
  std::vector<Mount> mounts_;
  std::vector<Device> devices_;
  std::vector<Link> links_;
  std::string proc_;  // relative to the root; empty: none
};

// Of a Spawn with a setup: the kernel, or what stands between us and it, refuses or does not know a step. The
// node is so: it will say the same of every process.
bool RefusedByNode(const absl::Status& status);

// Both in a child, system calls only, a bit for each capability that stays. Null, or the step that failed.
// The first wants CAP_SETPCAP; without it no_new_privs must keep an exec from taking what is in that set.
void DropBoundingCapabilities(uint64_t keep);
const char* DropCapabilities(uint64_t keep);

}  // namespace lamina
