#include "layers/chores.h"

#include "base/log.h"
#include "base/status.h"

namespace lamina::layers {
namespace {

void WarnIfFailed(const absl::Status& status) {
  if (!status.ok()) LogWarning("{}", Message(status));
}

}  // namespace

void Do(const Chores& chores, FileSystem& fs, ArenaFiles& arenas) {
  for (const Chores::Punch& punch : chores.punches) {
    const absl::Status status = arenas.Punch(punch.range);
    if (!absl::IsNotFound(status)) WarnIfFailed(status);  // the whole arena may have gone meanwhile
  }
  for (const std::string& path : chores.arena_files) WarnIfFailed(fs.Remove(path));
  for (const Chores::DiskFiles& disk : chores.disks) {
    for (const std::string& path : disk.paths) WarnIfFailed(fs.Remove(path));
  }
}

}  // namespace lamina::layers
