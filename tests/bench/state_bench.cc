// A sandbox's state: encoding, decoding, and the durable save that each step of a pod's life waits for.
#include <benchmark/benchmark.h>

#include "base/status.h"
#include "persist/state_store.h"
#include "tests/testing/temp_dir.h"

namespace lamina::persist {
namespace {

// A pod of `containers` containers with ten layers each, five of them shared by all.
SandboxState State(int containers) {
  SandboxState state;
  state.sandbox_id = std::string(64, 'a');
  state.pod_name = "web-7d4b9c6f5-x2x7k";
  state.pod_namespace = "shop";
  state.runtime_dir = "/run/lamina/sandboxes/" + state.sandbox_id;
  state.reasons = {"vCPUs: 0.5 overhead + 0.25 limits = 0.75, rounded up to 1",
                   "memory: 96 MiB overhead + 128 MiB limits = 224 MiB"};
  for (int layer = 0; layer < 5 * (containers + 1); ++layer) {
    state.layers.push_back({fmt::format("{:064x}", layer), "arena-0", static_cast<uint64_t>(layer) << 20,
                            1 << 20, "", "", "06.0"});
  }
  for (int i = 0; i < containers; ++i) {
    ContainerState container;
    container.id = fmt::format("{:064x}", 0x1000 + i);
    container.bundle = "/run/containerd/io.containerd.runtime.v2.task/k8s.io/" + container.id;
    container.life = persist::ContainerLife::kRunning;
    for (int layer = 0; layer < 5; ++layer) {
      container.layer_ids.push_back(state.layers[static_cast<size_t>(layer)].id);
      container.layer_ids.push_back(state.layers[static_cast<size_t>(5 * (i + 1) + layer)].id);
    }
    for (int mount = 0; mount < 6; ++mount) container.mounts.push_back(fmt::format("{}-{}", i, mount));
    state.containers[container.id] = container;
  }
  return state;
}

void Encode(benchmark::State& state) {
  const SandboxState sandbox = State(static_cast<int>(state.range(0)));
  size_t bytes = 0;
  for (auto _ : state) benchmark::DoNotOptimize(bytes = EncodeState(sandbox).size());
  state.counters["file_bytes"] = static_cast<double>(bytes);
}
BENCHMARK(Encode)->Arg(1)->Arg(10);

void Decode(benchmark::State& state) {
  const std::string text = EncodeState(State(static_cast<int>(state.range(0))));
  for (auto _ : state) {
    if (!DecodeState(text, "bench").ok()) state.SkipWithError("the state does not decode");
  }
}
BENCHMARK(Decode)->Arg(1)->Arg(10);

// With fsync of file and directory: the disk decides.
void Save(benchmark::State& state) {
  const testing::TempDir dir;
  StateStore store(FileSystem::Real(), dir.path());
  const SandboxState sandbox = State(static_cast<int>(state.range(0)));
  for (auto _ : state) {
    if (!store.Save(sandbox).ok()) state.SkipWithError("the state is not saved");
  }
}
BENCHMARK(Save)->Arg(1)->Arg(10)->UseRealTime();

}  // namespace
}  // namespace lamina::persist

BENCHMARK_MAIN();
