#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "base/status.h"
#include "persist/state_store.h"
#include "tests/bench/pod/experiments.h"
#include "tests/bench/pod/host_memory.h"
#include "tests/bench/pod/shim_client.h"
#include "tests/e2e/kit/leftovers.h"

namespace lamina::bench {
namespace {

using std::chrono::steady_clock;

constexpr double kMegabytesPerSecond = 50;
constexpr double kExecBudget = 3;  // times a bare `crun exec`
constexpr uint64_t kStreamBytes = 96 << 20;
constexpr uint64_t kLogBytes = 24 << 20;
constexpr int kExecsPerRound = 5;
constexpr char kHandlers[][8] = {"lamina", "runc"};

double Since(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

std::vector<std::string> Zeros(uint64_t bytes) {
  return {"dd", "if=/dev/zero", "bs=65536", "count=" + std::to_string(bytes / 65536)};
}

// A pod with a container "main" that sleeps and a privileged one that shares its PID namespace.
struct Target {
  std::string pod, main, privileged;
};

absl::StatusOr<Target> MakeTarget(e2e::Node& node, const std::string& handler) {
  Target target;
  e2e::PodSpec spec = SmallPod("streams-" + handler);
  spec.handler = handler;
  spec.privileged = spec.share_processes = true;
  ASSIGN_OR_RETURN(target.pod, node.cri().RunPod(spec));
  e2e::ContainerSpec container;
  container.command = {"sleep", "1000000"};
  ASSIGN_OR_RETURN(target.main, node.cri().RunContainer(target.pod, container));
  container.name = "privileged";
  container.privileged = true;
  ASSIGN_OR_RETURN(target.privileged, node.cri().RunContainer(target.pod, container));
  return target;
}

// Seconds since 1970 at the beginning of a line of kubelet's log.
double LogTime(const char* line) {
  tm time{};
  const char* rest = strptime(line, "%Y-%m-%dT%H:%M:%S", &time);
  return rest == nullptr ? 0 : static_cast<double>(timegm(&time)) + atof(rest);
}

// MB/s between the first and the last line of kubelet's log of a container that writes lines of 100 bytes
// which it has made before.
absl::StatusOr<double> LogRate(e2e::Node& node, const std::string& pod) {
  e2e::ContainerSpec spec;
  spec.name = "log";
  spec.command = {"sh", "-c",
                  fmt::format("yes {} | head -c {} > /tmp/lines; exec dd if=/tmp/lines bs=65536 2>/dev/null",
                              std::string(99, 'x'), kLogBytes)};
  ASSIGN_OR_RETURN(const std::string container, node.cri().RunContainer(pod, spec));
  ASSIGN_OR_RETURN(const e2e::ContainerInfo info,
                   node.cri().WaitForExit(container, e2e::In(std::chrono::seconds(60))));
  RETURN_IF_ERROR(node.WaitLogComplete(info.log_path, e2e::In(std::chrono::seconds(60))));
  const std::string log = e2e::ReadText(info.log_path);
  RETURN_IF_ERROR(node.cri().RemoveContainer(container));
  if (info.exit_code != 0 || log.size() < kLogBytes) {
    return MakeStatus(absl::StatusCode::kInternal, "{}: {} bytes of log after exit code {}", info.log_path,
                      log.size(), info.exit_code);
  }
  const double first = LogTime(log.c_str());
  const double last = LogTime(log.c_str() + log.rfind('\n', log.size() - 2) + 1);
  return static_cast<double>(kLogBytes) / 1e6 / (last - first);
}

// MB/s of an exec's output that a CRI client reads from containerd's streaming server, the exec's start
// included.
absl::StatusOr<double> StreamRate(e2e::Node& node, const std::string& container) {
  const auto start = steady_clock::now();
  ASSIGN_OR_RETURN(auto stream, node.cri().Exec(container, Zeros(kStreamBytes), false, false));
  ASSIGN_OR_RETURN(const e2e::ExecResult result, stream->Finish(e2e::In(std::chrono::seconds(60))));
  if (result.out.size() != kStreamBytes)
    return MakeStatus(absl::StatusCode::kInternal, "{} bytes came of {}", result.out.size(), kStreamBytes);
  return static_cast<double>(kStreamBytes) / 1e6 / Since(start);
}

absl::StatusOr<double> ExecSeconds(e2e::Node& node, const std::string& container) {
  const auto start = steady_clock::now();
  ASSIGN_OR_RETURN(const e2e::ExecResult result, node.cri().ExecSync(container, {"/bin/true"}));
  if (result.exit_code != 0)
    return MakeStatus(absl::StatusCode::kInternal, "exec of true exited with {}", result.exit_code);
  return Since(start);
}

// MB/s through a pipe between two processes of the container, by the container's clock: what is left of the
// machine for the guest, without Lamina in the way.
absl::StatusOr<double> PipeRate(e2e::Node& node, const std::string& container) {
  const std::string script = fmt::format(
      "read a x < /proc/uptime; dd if=/dev/zero bs=65536 count={} 2>/dev/null | "
      "dd of=/dev/null bs=65536 2>/dev/null; read b x < /proc/uptime; echo $a $b",
      kStreamBytes / 65536);
  ASSIGN_OR_RETURN(const e2e::ExecResult result, node.cri().ExecSync(container, {"sh", "-c", script}));
  double begin = 0, end = 0;
  if (sscanf(result.out.c_str(), "%lf %lf", &begin, &end) != 2 || end <= begin) {
    return MakeStatus(absl::StatusCode::kInternal, "no times from the container: {}{}", result.out,
                      result.err);
  }
  return static_cast<double>(kStreamBytes) / 1e6 / (end - begin);
}

// The guest's own crun, run beside PID 1 by a privileged container: without agent, shim and containerd.
absl::StatusOr<double> BareExecSeconds(e2e::Node& node, const Target& target) {
  ASSIGN_OR_RETURN(const e2e::ExecResult result,
                   node.cri().ExecSync(
                       target.privileged,
                       {"/probe", "beside-init", std::to_string(kExecsPerRound), "/usr/bin/crun", "--root",
                        "/run/lamina/crun", "--cgroup-manager=cgroupfs", "exec", target.main, "/bin/true"}));
  const double micros = atof(result.out.c_str());
  if (result.exit_code != 0 || micros <= 0) {
    return MakeStatus(absl::StatusCode::kInternal, "crun exec beside PID 1 exited with {}: {}{}",
                      result.exit_code, result.out, result.err);
  }
  return micros / 1e6;
}

}  // namespace

absl::Status MeasureStreams(Bench& bench) {
  std::vector<Target> targets;
  for (const char* handler : kHandlers) {
    ASSIGN_OR_RETURN(targets.emplace_back(), MakeTarget(bench.node, handler));
  }
  const Target& vm = targets[0];
  ASSIGN_OR_RETURN(ShimClient shim,
                   ShimClient::Connect(bench.node.dir() +
                                       "/containerd-run/io.containerd.runtime.v2.task/k8s.io/" + vm.pod));
  persist::StateStore store(FileSystem::Real(), bench.node.state_dir());
  ASSIGN_OR_RETURN(const persist::SandboxState state, store.Load(vm.pod));
  const auto shim_pid = static_cast<pid_t>(state.shim.pid), vmm_pid = static_cast<pid_t>(state.vmm.pid);

  std::vector<double> fifo, pipe, shim_cpu, vmm_cpu, stream[2], log[2], exec[2], shim_exec, bare_exec;
  for (int round = 0; round < bench.rounds; ++round) {
    ASSIGN_OR_RETURN(const double shim_before, CpuSeconds(shim_pid));
    ASSIGN_OR_RETURN(const double vmm_before, CpuSeconds(vmm_pid));
    ASSIGN_OR_RETURN(const ShimClient::Output output,
                     shim.ExecAndRead(vm.main, Zeros(kStreamBytes), bench.node.dir() + "/tmp/bench.fifo"));
    ASSIGN_OR_RETURN(const double shim_after, CpuSeconds(shim_pid));
    ASSIGN_OR_RETURN(const double vmm_after, CpuSeconds(vmm_pid));
    if (output.bytes != kStreamBytes)
      return MakeStatus(absl::StatusCode::kInternal, "{} bytes came of {}", output.bytes, kStreamBytes);
    fifo.push_back(static_cast<double>(output.bytes) / 1e6 / output.seconds);
    shim_cpu.push_back((shim_after - shim_before) / output.seconds);
    vmm_cpu.push_back((vmm_after - vmm_before) / output.seconds);
    ASSIGN_OR_RETURN(pipe.emplace_back(), PipeRate(bench.node, vm.main));
    for (int i = 0; i < 2; ++i) {
      ASSIGN_OR_RETURN(stream[i].emplace_back(), StreamRate(bench.node, targets[i].main));
      ASSIGN_OR_RETURN(log[i].emplace_back(), LogRate(bench.node, targets[i].pod));
    }
    ASSIGN_OR_RETURN(bare_exec.emplace_back(), BareExecSeconds(bench.node, vm));
    for (int i = 0; i < kExecsPerRound; ++i) {
      for (int handler = 0; handler < 2; ++handler) {
        ASSIGN_OR_RETURN(exec[handler].emplace_back(), ExecSeconds(bench.node, targets[handler].main));
      }
      ASSIGN_OR_RETURN(shim_exec.emplace_back(), shim.Exec(vm.main, {"/bin/true"}));
    }
  }
  for (const Target& target : targets) RETURN_IF_ERROR(bench.node.cri().RemovePod(target.pod));

  bench.report.Section(fmt::format("output of a container (median of {})", bench.rounds));
  bench.report.AtLeast("to its FIFO", Median(fifo), kMegabytesPerSecond, "MB/s",
                       "what containerd reads from");
  bench.report.Show("- a pipe inside the container", Median(pipe), "MB/s", "the guest alone, for comparison");
  bench.report.Show("- shim's CPU meanwhile", Median(shim_cpu), "cores");
  bench.report.Show("- QEMU's CPU meanwhile", Median(vmm_cpu), "cores");
  bench.report.Show("to an exec's client", Median(stream[0]), "MB/s",
                    "through containerd's streaming server");
  bench.report.Show("- with runc", Median(stream[1]), "MB/s");
  bench.report.Show("to kubelet's log", Median(log[0]), "MB/s", "lines of 100 bytes");
  bench.report.Show("- with runc", Median(log[1]), "MB/s");
  bench.report.Section("exec of true (medians)");
  bench.report.AtMost("ExecSync / bare crun exec in the guest", Median(exec[0]) / Median(bare_exec),
                      kExecBudget, "");
  bench.report.Show("- ExecSync", Median(exec[0]) * 1000, "ms", "containerd, shim, agent, crun");
  bench.report.Show("- shim alone", Median(shim_exec) * 1000, "ms", "Exec, Start, Wait");
  bench.report.Show("- bare crun exec", Median(bare_exec) * 1000, "ms");
  bench.report.Show("- ExecSync with runc", Median(exec[1]) * 1000, "ms", "on the host");
  return absl::OkStatus();
}

}  // namespace lamina::bench
