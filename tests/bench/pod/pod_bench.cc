// The budgets of the whole chain, measured on a node of its own: ./dev bench pod.
//   pod_bench [--rounds N] [boot] [layers] [streams] [memory]
// Exit code 0: all within budget; 1: a budget is missed; 2: it could not be measured.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "tests/bench/pod/experiments.h"

namespace lamina::bench {
namespace {

constexpr int kDefaultRounds = 5;

using Experiment = std::pair<const char*, absl::Status (*)(Bench&)>;
// Layers first: the node must not know the image yet.
constexpr Experiment kExperiments[] = {
    {"layers", MeasureLayers}, {"streams", MeasureStreams}, {"boot", MeasureBoot}, {"memory", MeasureMemory}};

absl::Status Run(e2e::Node& node, const std::set<std::string>& wanted, int rounds, Report& report) {
  ASSIGN_OR_RETURN(const e2e::ImageKit images, e2e::ImageKit::Create(e2e::CacheDir(), e2e::ProbePath()));
  for (const e2e::Image& image : {images.Pause(), images.Busybox()}) RETURN_IF_ERROR(node.Import(image));
  Bench bench{node, images, report, rounds};
  for (const auto& [name, measure] : kExperiments) {
    if (!wanted.empty() && wanted.count(name) == 0) continue;
    fmt::print(stderr, "measuring: {} …\n", name);
    RETURN_IF_ERROR(Annotate(measure(bench), name));
  }
  return absl::OkStatus();
}

int Main(int rounds, const std::set<std::string>& wanted) {
  e2e::NodeOptions options;
  options.config["hypervisor.accel"] = "\"auto\"";
  options.config["layers.max_layer_size"] = "\"64MiB\"";
  options.config["layers.arena_size"] = "\"1GiB\"";
  options.config["memory.capacity"] = "\"16GiB\"";
  auto node = e2e::Node::Start(options);
  if (!node.ok()) {
    fmt::print(stderr, "pod_bench: {}\n", Message(node.status()));
    return 2;
  }
  Report report;
  const absl::Status status = Run(**node, wanted, rounds, report);
  if (!status.ok()) fmt::print(stderr, "pod_bench: {}\n{}\n", Message(status), (*node)->LogTails());
  const absl::Status stopped = (*node)->Stop();
  if (!stopped.ok()) fmt::print(stderr, "pod_bench: {}\n", Message(stopped));
  fmt::print("{}", report.Text());
  if (!status.ok() || !stopped.ok()) return 2;
  if (report.missed() > 0) fmt::print("{} over budget\n", report.missed());
  return report.missed() > 0 ? 1 : 0;
}

}  // namespace
}  // namespace lamina::bench

int main(int argc, char** argv) {
  int rounds = lamina::bench::kDefaultRounds;
  std::set<std::string> wanted;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    bool known = false;
    for (const auto& [name, measure] : lamina::bench::kExperiments) known = known || word == name;
    if (known) {
      wanted.insert(word);
    } else if (word == "--rounds" && i + 1 < argc && atoi(argv[i + 1]) > 0) {
      rounds = atoi(argv[++i]);
    } else {
      fmt::print(stderr, "usage: pod_bench [--rounds N] [boot] [layers] [streams] [memory]\n");
      return 2;
    }
  }
  return lamina::bench::Main(rounds, wanted);
}
