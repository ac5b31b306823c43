#include "node/other_boots.h"

#include <sstream>

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
  std::istringstream lines(mountinfo);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream fields(line);
    std::string field, point;
    // id, parent, device, root, mount point
    for (int i = 0; i < 4; ++i) fields >> field;
    fields >> point;
    if (point == directory || Inside(point, directory)) return point;
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
