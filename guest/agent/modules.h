// Kernel modules from /lib/modules of the guest image (guest/image/modules.txt names and orders them).
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"

namespace lamina::guest {

struct ModuleEntry {
  std::string group, name;
};

// Lines "<group> <module>"; empty lines and lines that begin with '#' are skipped. InvalidArgument names the
// line.
absl::StatusOr<std::vector<ModuleEntry>> ParseModuleOrder(std::string_view text);

// The group that serves a virtio device: "virtio:d0000001Bv00001AF4" -> "virtio-27"; empty for other text.
std::string ModuleGroupOfModalias(std::string_view modalias);

// Thread-safe. A group is loaded once; a second caller waits for the first.
class ModuleLoader {
 public:
  // Without entries every group counts as loaded (a kernel that is not ours).
  ModuleLoader(std::string directory, std::vector<ModuleEntry> order)
      : directory_(std::move(directory)), order_(std::move(order)) {}

  // Loads the group's modules in order. OK for a group without modules and for modules that are loaded
  // already; a module that finds no hardware (ENODEV, e.g. crc32c-intel) is passed over. The files are
  // removed once loaded.
  absl::Status Load(const std::string& group);

 private:
  const std::string directory_;
  const std::vector<ModuleEntry> order_;
  Mutex mutex_;
  std::set<std::string> loaded_ GUARDED_BY(mutex_);
};

}  // namespace lamina::guest
