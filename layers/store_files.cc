#include "layers/store_files.h"

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "base/log.h"
#include "base/status.h"

namespace lamina::layers {
namespace {

void PunchGaps(ArenaFiles& files, const ArenaRecord& arena) {
  std::map<uint64_t, uint64_t> taken = {{arena.bytes, 0}};
  for (const auto& [digest, region] : arena.regions) taken[region.region.offset] = region.region.held_bytes;
  uint64_t at = 0;
  for (const auto& [offset, bytes] : taken) {
    if (offset > at) {
      if (const absl::Status status = files.Punch({arena.path, at, offset - at}); !status.ok())
        LogWarning("{}", Message(status));
    }
    at = offset + bytes;
  }
}

}  // namespace

void ForgetMissing(FileSystem& fs, const StoreOptions& options, IndexContent& content) {
  std::erase_if(content.arenas,
                [&](const IndexedArena& arena) { return !fs.Exists(ArenaPath(options.dir, arena.id)); });
  std::erase_if(content.disks, [&](IndexedDisk& disk) {
    if (disk.path.empty() || IsOurs(options.dir, disk.path)) disk.path = DiskPath(options.dir, disk.digest);
    return !fs.Exists(disk.path);
  });
}

absl::Status ClearLeftovers(FileSystem& fs, ArenaFiles& arenas, const StoreOptions& options,
                            const LayerRecords& records) {
  std::set<std::string> known = {options.dir + "/index.json"};
  for (const auto& [id, arena] : records.arenas) {
    PunchGaps(arenas, arena);
    known.insert(arena.path);
  }
  for (const auto& [key, disk] : records.disks) {
    known.insert(disk.path);
    // Written anew when the disk is first used; until then a pod that was given it may be attaching it.
    if (options.scsi_verity) known.insert(TreePath(options.dir, disk.digest));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> names, fs.List(options.dir));
  for (const std::string& name : names) {
    const std::string path = options.dir + "/" + name;
    if (known.count(path) == 0) RETURN_IF_ERROR(fs.Remove(path));
  }
  return absl::OkStatus();
}

}  // namespace lamina::layers
