// What is to be done to files because of a change of the book: done without the store's mutex, settled under
// it. Until then what the files hold is not given again.
#pragma once

#include <string>
#include <vector>

#include "base/file_system.h"
#include "layers/arena_file.h"
#include "layers/pool_allocator.h"

namespace lamina::layers {

struct Chores {
  struct Punch {
    std::string arena_id;
    ArenaRange range;
    Handle handle;  // released when it is settled
  };
  struct DiskFiles {
    std::string digest;
    std::vector<std::string> paths;
  };
  std::vector<Punch> punches;
  std::vector<std::string> arena_files;  // arenas that are gone
  std::vector<DiskFiles> disks;

  bool empty() const { return punches.empty() && arena_files.empty() && disks.empty(); }
};

// Punches and removes. What fails is in the log and costs room on the disk until the next start, which
// removes what no index names: nothing depends on it.
void Do(const Chores& chores, FileSystem& fs, ArenaFiles& arenas);

}  // namespace lamina::layers
