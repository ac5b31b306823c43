#include "cri/host_limits.h"

#include <sstream>

#include "base/file_system.h"
#include "base/status.h"
#include "base/units.h"
#include "cri/cgroup.h"

namespace lamina::cri {
namespace {

constexpr uint64_t kSlackBytes = 64 * kMiB, kSlackShare = 64;
// QEMU's I/O (up to 64 workers), its helpers, virtiofsd's pool and queues.
constexpr uint64_t kOtherTasks = 256;

// The first of the directories' files that is there; empty: none.
std::string Find(const std::vector<std::string>& dirs, std::initializer_list<const char*> names) {
  for (const std::string& dir : dirs) {
    for (const char* name : names) {
      if (FileSystem::Real().Exists(dir + name)) return dir + name;
    }
  }
  return "";
}

}  // namespace

uint64_t MemoryLimit(vmm::Accel accel, uint64_t claim_bytes) {
  const uint64_t translated = accel == vmm::Accel::kTcg ? vmm::kTranslatedCodeBytes : 0;
  return claim_bytes + kSlackBytes + claim_bytes / kSlackShare + translated;
}

uint64_t TaskLimit(uint32_t max_vcpus) { return max_vcpus + kOtherTasks; }

absl::Status LimitMemory(const std::vector<std::string>& dirs, uint64_t bytes) {
  const std::string file = Find(dirs, {"/memory.max", "/memory.limit_in_bytes"});
  if (file.empty()) return absl::NotFoundError("no cgroup limits the memory of the sandbox's processes");
  const std::string value = fmt::format("{}", bytes);
  // What is swapped out would be beyond the limit. Version 2 counts swap by itself; version 1 counts both
  // together, never less than the memory: the larger is raised first and lowered last.
  if (const std::string swap = Find(dirs, {"/memory.swap.max"}); !swap.empty())
    RETURN_IF_ERROR(WriteCgroupFile(swap, "0"));
  const std::string both = Find(dirs, {"/memory.memsw.limit_in_bytes"});
  const absl::Status limited = WriteCgroupFile(file, value);
  if (both.empty()) return limited;
  RETURN_IF_ERROR(WriteCgroupFile(both, value));
  return limited.ok() ? limited : WriteCgroupFile(file, value);
}

absl::Status LimitTasks(const std::vector<std::string>& dirs, uint64_t tasks) {
  const std::string file = Find(dirs, {"/pids.max"});
  return file.empty() ? absl::OkStatus() : WriteCgroupFile(file, fmt::format("{}", tasks));
}

uint64_t OomKills(const std::vector<std::string>& dirs) {
  const std::string file = Find(dirs, {"/memory.events", "/memory.oom_control"});
  std::istringstream text(file.empty() ? "" : FileSystem::Real().Read(file, 4096).value_or(""));
  std::string name;
  for (uint64_t value = 0; text >> name >> value;) {
    if (name == "oom_kill") return value;
  }
  return 0;
}

}  // namespace lamina::cri
