#include "cri/messages.h"

#include "proto/containerd/cgroups.pb.h"

namespace lamina::cri {
namespace {

uint64_t Of(const agent::v1::ContainerStats& stats, const char* key) {
  const auto it = stats.memory_stat().find(key);
  return it == stats.memory_stat().end() ? 0 : it->second;
}

containerd::cgroups::Metrics ToMetrics(const agent::v1::ContainerStats& stats) {
  containerd::cgroups::Metrics metrics;
  metrics.mutable_pids()->set_current(stats.pids_current());
  metrics.mutable_pids()->set_limit(stats.pids_limit());
  auto* cpu = metrics.mutable_cpu();
  cpu->set_usage_usec(stats.cpu_usage_usec());
  cpu->set_user_usec(stats.cpu_user_usec());
  cpu->set_system_usec(stats.cpu_system_usec());
  cpu->set_nr_periods(stats.cpu_periods());
  cpu->set_nr_throttled(stats.cpu_throttled_periods());
  cpu->set_throttled_usec(stats.cpu_throttled_usec());
  auto* memory = metrics.mutable_memory();
  memory->set_anon(Of(stats, "anon"));
  memory->set_file(Of(stats, "file"));
  memory->set_kernel_stack(Of(stats, "kernel_stack"));
  memory->set_slab(Of(stats, "slab"));
  memory->set_shmem(Of(stats, "shmem"));
  memory->set_file_mapped(Of(stats, "file_mapped"));
  memory->set_file_dirty(Of(stats, "file_dirty"));
  memory->set_file_writeback(Of(stats, "file_writeback"));
  memory->set_inactive_anon(Of(stats, "inactive_anon"));
  memory->set_active_anon(Of(stats, "active_anon"));
  memory->set_inactive_file(Of(stats, "inactive_file"));
  memory->set_active_file(Of(stats, "active_file"));
  memory->set_unevictable(Of(stats, "unevictable"));
  memory->set_pgfault(Of(stats, "pgfault"));
  memory->set_pgmajfault(Of(stats, "pgmajfault"));
  memory->set_usage(stats.memory_usage_bytes());
  memory->set_usage_limit(stats.memory_limit_bytes());
  memory->set_swap_usage(stats.swap_usage_bytes());
  metrics.mutable_memory_events()->set_oom(stats.memory_oom());
  metrics.mutable_memory_events()->set_oom_kill(stats.memory_oom_kill());
  return metrics;
}

}  // namespace

containerd::Timestamp ToTimestamp(int64_t unix_nanos) {
  containerd::Timestamp stamp;
  stamp.set_seconds(unix_nanos / 1'000'000'000);
  stamp.set_nanos(static_cast<int32_t>(unix_nanos % 1'000'000'000));
  return stamp;
}

containerd::Any MetricsOf(const agent::v1::ContainerStats& stats) {
  containerd::Any data;
  data.set_type_url("io.containerd.cgroups.v2.Metrics");
  ToMetrics(stats).SerializeToString(data.mutable_value());
  return data;
}

containerd::TaskExit ExitEvent(const Process& process, uint32_t pid, ExitInfo exit) {
  containerd::TaskExit event;
  event.set_container_id(process.container_id);
  event.set_id(process.exec_id.empty() ? process.container_id : process.exec_id);
  event.set_pid(pid);
  event.set_exit_status(exit.status);
  *event.mutable_exited_at() = ToTimestamp(exit.unix_nanos);
  return event;
}

}  // namespace lamina::cri
