#include <cstdlib>
#include <vector>

#include "base/status.h"
#include "base/units.h"
#include "persist/state_store.h"
#include "tests/bench/pod/experiments.h"
#include "tests/bench/pod/host_memory.h"
#include "tests/e2e/kit/leftovers.h"

namespace lamina::bench {
namespace {

constexpr int kPods = 10;
constexpr double kShimMiB = 1, kAgentMiB = 3, kLaminadMiB = 25;
constexpr double kMiBf = static_cast<double>(kMiB);

absl::StatusOr<int> LaminadPid(e2e::Node& node) {
  for (const e2e::Process& process : e2e::FindProcesses(node.config_path(), {})) {
    if (process.command.find("/laminad ") != std::string::npos) return process.pid;
  }
  return absl::NotFoundError("laminad does not run");
}

}  // namespace

absl::Status MeasureMemory(Bench& bench) {
  e2e::CriClient& cri = bench.node.cri();
  persist::StateStore store(FileSystem::Real(), bench.node.state_dir());
  std::vector<std::string> pods;
  std::string container;
  for (int i = 0; i < kPods; ++i) {
    e2e::PodSpec spec = SmallPod("memory-" + std::to_string(i));
    spec.share_processes = true;  // the guest's PID 1 is seen from the container
    ASSIGN_OR_RETURN(pods.emplace_back(), cri.RunPod(spec));
    e2e::ContainerSpec sleeper;
    sleeper.command = {"sleep", "1000000"};
    ASSIGN_OR_RETURN(container, cri.RunContainer(pods.back(), sleeper));
  }
  double largest = 0, sum = 0, virtiofsd = 0, qemu = 0;
  for (const std::string& pod : pods) {
    ASSIGN_OR_RETURN(const persist::SandboxState state, store.Load(pod));
    ASSIGN_OR_RETURN(const MappedBytes shim, ProcessMemory(static_cast<pid_t>(state.shim.pid)));
    largest = std::max(largest, static_cast<double>(shim.proportional));
    sum += static_cast<double>(shim.proportional);
    ASSIGN_OR_RETURN(const MappedBytes vmm, ProcessMemory(static_cast<pid_t>(state.vmm.pid)));
    qemu += static_cast<double>(vmm.proportional);
    for (const e2e::Process& process : e2e::FindProcesses(state.runtime_dir, {})) {
      if (process.command.find("/virtiofsd --fd") == std::string::npos) continue;
      const auto memory = ProcessMemory(process.pid);
      if (memory.ok()) virtiofsd += static_cast<double>(memory->proportional);
    }
  }
  ASSIGN_OR_RETURN(const e2e::ExecResult status,
                   cri.ExecSync(container, {"sh", "-c", "grep ^VmRSS: /proc/1/status"}));
  const double agent = atof(status.out.c_str() + status.out.find_first_of("0123456789")) * 1024;
  ASSIGN_OR_RETURN(const int laminad_pid, LaminadPid(bench.node));
  ASSIGN_OR_RETURN(const MappedBytes laminad, ProcessMemory(laminad_pid));
  for (const std::string& pod : pods) RETURN_IF_ERROR(cri.RemovePod(pod));
  if (agent <= 0) return MakeStatus(absl::StatusCode::kInternal, "no VmRSS in \"{}\"", status.out);

  bench.report.Section(fmt::format("memory ({} pods, a container each)", kPods));
  bench.report.AtMost("shim, largest", largest / kMiBf, kShimMiB, "MiB", "Pss");
  bench.report.Show("shim, mean", sum / kPods / kMiBf, "MiB", "Pss");
  bench.report.AtMost("agent in the guest", agent / kMiBf, kAgentMiB, "MiB", "VmRSS of PID 1");
  bench.report.AtMost("laminad", static_cast<double>(laminad.resident) / kMiBf, kLaminadMiB, "MiB", "Rss");
  bench.report.Show("QEMU, mean", qemu / kPods / kMiBf, "MiB", "Pss, with the guest's memory");
  bench.report.Show("virtiofsd, mean", virtiofsd / kPods / kMiBf, "MiB", "Pss of its two processes");
  return absl::OkStatus();
}

}  // namespace lamina::bench
