#include "guest/agent/cgroup.h"

#include <dirent.h>
#include <sys/stat.h>

#include <cerrno>
#include <limits>

#include "base/status.h"
#include "guest/agent/files.h"
#include "proto/agent.pb.h"

namespace lamina::guest {
namespace {

absl::Status CollectPids(const std::string& directory, int depth, std::vector<uint32_t>& pids) {
  ASSIGN_OR_RETURN(const std::string text, ReadKernelFile(directory + "/cgroup.procs"));
  size_t at = 0;
  while (at < text.size()) {
    const size_t newline = std::min(text.find('\n', at), text.size());
    const auto pid = ParseCount(std::string_view(text).substr(at, newline - at));
    if (pid.ok()) pids.push_back(static_cast<uint32_t>(*pid));
    at = newline + 1;
  }
  // A container may have made cgroups of its own; 16 levels are more than any has.
  if (depth >= 16) return absl::OkStatus();
  DIR* dir = opendir(directory.c_str());
  if (dir == nullptr) return absl::OkStatus();
  while (const dirent* entry = readdir(dir)) {
    if (entry->d_type == DT_DIR && entry->d_name[0] != '.') {
      CollectPids(directory + "/" + entry->d_name, depth + 1, pids).IgnoreError();
    }
  }
  closedir(dir);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<agent::v1::ContainerStats> Cgroup::Stats() const {
  struct stat info;
  if (stat(directory_.c_str(), &info) != 0) return ErrnoStatus(errno, "cgroup " + directory_);
  const auto text = [&](const char* file) {
    auto content = ReadKernelFile(directory_ + "/" + file);
    return content.ok() ? *std::move(content) : std::string();
  };
  const auto number = [&](const char* file, uint64_t otherwise) {
    const auto value = ParseCount(text(file));
    return value.ok() ? *value : otherwise;
  };
  agent::v1::ContainerStats stats;
  auto cpu = ParseFlatKeyed(text("cpu.stat"));
  stats.set_cpu_usage_usec(cpu["usage_usec"]);
  stats.set_cpu_user_usec(cpu["user_usec"]);
  stats.set_cpu_system_usec(cpu["system_usec"]);
  stats.set_cpu_periods(cpu["nr_periods"]);
  stats.set_cpu_throttled_periods(cpu["nr_throttled"]);
  stats.set_cpu_throttled_usec(cpu["throttled_usec"]);
  constexpr uint64_t kNone = std::numeric_limits<uint64_t>::max();
  stats.set_memory_usage_bytes(number("memory.current", 0));
  stats.set_memory_limit_bytes(number("memory.max", kNone));
  stats.set_swap_usage_bytes(number("memory.swap.current", 0));
  for (const auto& [name, value] : ParseFlatKeyed(text("memory.stat")))
    (*stats.mutable_memory_stat())[name] = value;
  auto events = ParseFlatKeyed(text("memory.events"));
  stats.set_memory_oom(events["oom"]);
  stats.set_memory_oom_kill(events["oom_kill"]);
  stats.set_pids_current(number("pids.current", 0));
  stats.set_pids_limit(number("pids.max", kNone));
  return stats;
}

absl::StatusOr<uint64_t> Cgroup::OomKills() const {
  ASSIGN_OR_RETURN(const std::string text, ReadKernelFile(directory_ + "/memory.events"));
  return ParseFlatKeyed(text)["oom_kill"];
}

absl::StatusOr<std::vector<uint32_t>> Cgroup::Pids() const {
  std::vector<uint32_t> pids;
  RETURN_IF_ERROR(CollectPids(directory_, 0, pids));
  return pids;
}

absl::Status Cgroup::KillAll() const {
  const absl::Status killed = WriteKernelFile(directory_ + "/cgroup.kill", "1");
  return killed.code() == absl::StatusCode::kNotFound ? absl::OkStatus() : killed;
}

absl::Status Cgroup::Freeze(bool frozen) const {
  return WriteKernelFile(directory_ + "/cgroup.freeze", frozen ? "1" : "0");
}

}  // namespace lamina::guest
