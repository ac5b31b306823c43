#include "cri/host_stats.h"

#include <unistd.h>

#include <cinttypes>

#include "base/file_system.h"
#include "base/proc.h"
#include "base/status.h"

namespace lamina::cri {

agent::v1::ContainerStats HostStats(const HostProcesses& processes, const std::string& proc) {
  agent::v1::ContainerStats stats;
  stats.set_memory_limit_bytes(processes.claim_bytes);
  stats.set_pids_limit(UINT64_MAX);
  const auto add = [&](const char* key, uint64_t bytes) { (*stats.mutable_memory_stat())[key] += bytes; };
  const auto tick_usec = 1'000'000 / static_cast<uint64_t>(sysconf(_SC_CLK_TCK));
  for (const int64_t pid : {processes.vmm, processes.virtiofsd}) {
    const std::string dir = fmt::format("{}/{}/", proc, pid);
    const std::string stat = FileSystem::Real().Read(dir + "stat", 4096).value_or("");
    const std::string status = FileSystem::Real().Read(dir + "status", 65536).value_or("");
    uint64_t user = 0, system = 0, minor = 0, major = 0;
    // The command's name may hold anything: fields count from its end.
    if (pid <= 0 || stat.rfind(')') == std::string::npos ||
        sscanf(stat.c_str() + stat.rfind(')') + 1,
               " %*c %*d %*d %*d %*d %*d %*u %" SCNu64 " %*u %" SCNu64 " %*u %" SCNu64 " %" SCNu64, &minor,
               &major, &user, &system) != 4) {
      continue;
    }
    stats.set_pids_current(stats.pids_current() + 1);
    stats.set_cpu_user_usec(stats.cpu_user_usec() + user * tick_usec);
    stats.set_cpu_system_usec(stats.cpu_system_usec() + system * tick_usec);
    add("pgfault", minor + major);
    add("pgmajfault", major);
    add("anon", KernelBytes(status, "RssAnon"));
    // virtiofsd maps the guest's memory, which is QEMU's already. Mapped files are arenas, which all VMs
    // share.
    if (pid == processes.vmm) add("shmem", KernelBytes(status, "RssShmem"));
  }
  stats.set_cpu_usage_usec(stats.cpu_user_usec() + stats.cpu_system_usec());
  uint64_t held = 0;
  for (const char* key : {"anon", "shmem"}) held += (*stats.mutable_memory_stat())[key];
  stats.set_memory_usage_bytes(held);
  return stats;
}

}  // namespace lamina::cri
