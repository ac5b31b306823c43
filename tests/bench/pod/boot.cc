#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/status.h"
#include "persist/state_store.h"
#include "tests/bench/pod/bare_vm.h"
#include "tests/bench/pod/experiments.h"

namespace lamina::bench {
namespace {

using std::chrono::steady_clock;

constexpr const char* kPhases[] = {"claim", "prepare", "qemu", "kernel", "agent", "configure", "total"};
constexpr double kReadyBudget = 1.25;  // times the bare command

// What laminad heard of the shim, in seconds.
absl::StatusOr<std::map<std::string, double>> PhasesOf(e2e::Node& node, const std::string& pod) {
  ASSIGN_OR_RETURN(const std::string text, node.Rest("/v1/sandboxes"));
  const auto view = nlohmann::json::parse(text, nullptr, false);
  if (view.is_object()) {
    for (const auto& sandbox : view["sandboxes"]) {
      if (sandbox.value("id", "") != pod) continue;
      std::map<std::string, double> phases = sandbox["boot_seconds"];
      for (const char* phase : kPhases) {
        if (phases.count(phase) == 0)
          return MakeStatus(absl::StatusCode::kInternal, "pod {}: no boot phase \"{}\"", pod, phase);
      }
      return phases;
    }
  }
  return MakeStatus(absl::StatusCode::kNotFound, "laminad does not list pod {}", pod);
}

}  // namespace

absl::Status MeasureBoot(Bench& bench) {
  std::vector<double> bare, pod_seconds;
  std::map<std::string, std::vector<double>> phases;
  // The first round warms the caches and is not counted.
  for (int round = 0; round <= bench.rounds; ++round) {
    const auto start = steady_clock::now();
    ASSIGN_OR_RETURN(const std::string pod, bench.node.cri().RunPod(SmallPod("boot")));
    const double seconds = std::chrono::duration<double>(steady_clock::now() - start).count();
    ASSIGN_OR_RETURN(const auto of_pod, PhasesOf(bench.node, pod));
    persist::StateStore store(FileSystem::Real(), bench.node.state_dir());
    ASSIGN_OR_RETURN(const persist::SandboxState state, store.Load(pod));
    ASSIGN_OR_RETURN(const auto argv, CommandOf(static_cast<int>(state.vmm.pid)));
    RETURN_IF_ERROR(bench.node.cri().RemovePod(pod));

    const std::string dir = bench.node.dir() + "/tmp/bare";
    ASSIGN_OR_RETURN(const double alone, BootBare(BareCommand(argv), dir));
    if (round == 0) continue;
    bare.push_back(alone);
    pod_seconds.push_back(seconds);
    for (const auto& [phase, value] : of_pod) phases[phase].push_back(value);
  }
  const double reference = Median(bare), total = Median(phases["total"]);
  bench.report.Section(fmt::format("sandbox ready (median of {} rounds)", bench.rounds));
  bench.report.AtMost("sandbox ready / bare QEMU", total / reference, kReadyBudget, "",
                      "claim to ready in the shim; the same command to the agent's first answer");
  bench.report.Show("bare QEMU command", reference, "s");
  for (const char* phase : kPhases) bench.report.Show(std::string("- ") + phase, Median(phases[phase]), "s");
  bench.report.Show("RunPodSandbox", Median(pod_seconds), "s", "with containerd's own work and the CNI's");
  bench.report.Show("RunPodSandbox / bare QEMU", Median(pod_seconds) / reference, "");
  return absl::OkStatus();
}

}  // namespace lamina::bench
