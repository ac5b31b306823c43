// Whether what a claim was granted for still lives: its shim, its VM.
#pragma once

#include <string>

#include "base/file_system.h"
#include "node/host.h"
#include "persist/state_store.h"
#include "proto/claims_journal.pb.h"

namespace lamina::node {

// Thread-safe; reads /proc and the sandboxes' states, changes nothing.
class Owners {
 public:
  Owners(FileSystem& fs, const std::string& state_dir, Host& host)
      : host_(host), boot_id_(host.BootId()), states_(fs, state_dir) {}

  // Pids that were written under another boot's id name nobody, whatever runs under these numbers now. What
  // was written without one is judged by its pids alone.
  bool OfThisBoot(const std::string& boot_id) const {
    return boot_id.empty() || boot_id_.empty() || boot_id == boot_id_;
  }

  bool Alive(int64_t pid, uint64_t start_time) const { return host_.Alive(pid, start_time); }
  // Its VM runs, says its record, or the sandbox's own state where no start was told. A state that cannot be
  // read may name a VM that lives: true.
  bool VmmLives(const laminad::v1::ClaimRecord& record) const;
  // Its VM or its shim.
  bool Lives(const laminad::v1::ClaimRecord& record) const;
  // The same of the VM that a sandbox's state names.
  bool VmmLives(const persist::SandboxState& state) const;
  const persist::StateStore& states() const { return states_; }

 private:
  Host& host_;
  const std::string boot_id_;
  const persist::StateStore states_;
};

}  // namespace lamina::node
