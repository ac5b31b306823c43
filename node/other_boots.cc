#include "node/other_boots.h"

#include "base/proc.h"
#include "base/status.h"
#include "base/units.h"
#include "persist/state_store.h"

namespace lamina::node {
namespace {

constexpr size_t kMountinfoLimit = 16 * kMiB;

bool Inside(const std::string& path, const std::string& directory) {
  return path.size() > directory.size() + 1 && path.rfind(directory + "/", 0) == 0 &&
         (path + "/").find("/../") == std::string::npos;
}

}  // namespace

std::string MountIn(const std::string& mountinfo, const std::string& directory) {
  for (const MountEntry& mount : ParseMountinfo(mountinfo)) {
    if (mount.point == directory || Inside(mount.point, directory)) return mount.point;
  }
  return "";
}

absl::Status ClearOtherBoot(FileSystem& fs, const std::string& run_dir, const std::string& state_dir,
                            const persist::SandboxState& state) {
  if (!state.runtime_dir.empty()) {
    if (!Inside(state.runtime_dir, run_dir)) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition,
                        "sandbox {}: of another boot, but its runtime directory {} is not in {}",
                        state.sandbox_id, state.runtime_dir, run_dir);
    }
    ASSIGN_OR_RETURN(const std::string mountinfo, fs.Read("/proc/self/mountinfo", kMountinfoLimit));
    if (const std::string point = MountIn(mountinfo, state.runtime_dir); !point.empty()) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition,
                        "sandbox {}: of another boot, but {} is mounted in its runtime directory",
                        state.sandbox_id, point);
    }
    RETURN_IF_ERROR(fs.RemoveTree(state.runtime_dir));
  }
  return persist::StateStore(fs, state_dir).Remove(state.sandbox_id);
}

}  // namespace lamina::node
