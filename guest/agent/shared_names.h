// The names in the directory that the host shares by virtiofs. For each inode that this kernel remembers the
// host's virtiofsd holds a descriptor, and with it whatever is mounted there; the kernel remembers an inode
// until it is short of memory, or has looked for its name and not found it. So what a container has used is
// unmounted when it goes, and its names are looked for once the host may have taken them away.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/mutex.h"

namespace lamina::guest {

// Thread-safe.
class SharedNames {
 public:
  // The kernel believes a name for a second (virtiofsd's cache=auto) before it asks the host again.
  explicit SharedNames(std::string directory,
                       std::chrono::milliseconds look_step = std::chrono::milliseconds(1500));
  ~SharedNames();

  // A container uses these names from now on; each once, whatever the count of its mounts.
  void Use(const std::vector<std::string>& names);

  // It no longer does, and has no mount of them left. A thread looks for them 20 times, then again with the
  // next ones.
  void Leave(const std::vector<std::string>& names);

  // Names that the host still has, though no container uses them.
  size_t left() const;

 private:
  struct State;
  static void Watch(const std::shared_ptr<State>& state);
  const std::shared_ptr<State> state_;  // the thread may outlive the object
};

}  // namespace lamina::guest
