#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "base/status.h"
#include "base/units.h"
#include "persist/state_store.h"
#include "tests/bench/pod/experiments.h"
#include "tests/bench/pod/host_memory.h"
#include "tests/e2e/kit/leftovers.h"

namespace lamina::bench {
namespace {

constexpr double kSecondPod = 0.2;         // times the first pod's
constexpr double kCacheGrowth = 0.05;      // of the bytes read
constexpr double kSharedPss = 0.55;        // of Rss, with two readers
constexpr uint64_t kFileBytes = 40 << 20;  // of /big/noise
constexpr int64_t kExecSeconds = 120;      // an emulated guest on a busy machine reads slowly
constexpr double kMiBf = static_cast<double>(kMiB);

// Busybox and a layer of 40 MiB that no other round's image shares.
e2e::Image ImageOfRound(const e2e::ImageKit& kit, int round) {
  e2e::Image image = kit.Big();
  image.name = fmt::format("localhost/lamina/bench-layers:{}", round);
  for (e2e::Layer& layer : image.layers) {
    for (e2e::Entry& entry : layer.entries()) {
      if (entry.path == "big/noise") entry.content[0] = static_cast<char>(round);
    }
  }
  return image;
}

struct MountTime {
  double place = 0, attach = 0, mount = 0;
  double wait = 0;  // part of mount: until the guest's kernel has the devices
  double total() const { return place + attach + mount; }
};

// The shim's log line of the container, which containerd passes on into its own log.
absl::StatusOr<MountTime> MountTimeOf(e2e::Node& node, const std::string& container) {
  MountTime time;
  RETURN_IF_ERROR(e2e::Eventually(e2e::In(std::chrono::seconds(10)), [&]() -> absl::Status {
    const std::string log = e2e::ReadText(node.dir() + "/containerd.log");
    const size_t at = log.find("container " + container + " has its layers: ");
    if (at != std::string::npos &&
        sscanf(log.c_str() + log.find(": ", at),
               ": placed in %lf s, attached in %lf s, mounted in %lf s, of which the guest waited %lf s",
               &time.place, &time.attach, &time.mount, &time.wait) == 4) {
      return absl::OkStatus();
    }
    return MakeStatus(absl::StatusCode::kNotFound, "no shim has logged the layers of container {}",
                      container);
  }));
  return time;
}

absl::StatusOr<double> Metric(e2e::Node& node, const std::string& name) {
  ASSIGN_OR_RETURN(const std::string text, node.Rest("/metrics"));
  const size_t at = text.find("\n" + name + " ");
  if (at == std::string::npos) return MakeStatus(absl::StatusCode::kNotFound, "no metric {}", name);
  return atof(text.c_str() + at + name.size() + 2);
}

// A number that a command in the container prints.
absl::StatusOr<double> Number(e2e::Node& node, const std::string& container, const std::string& command) {
  ASSIGN_OR_RETURN(const e2e::ExecResult result,
                   node.cri().ExecSync(container, {"sh", "-c", command}, kExecSeconds));
  if (result.exit_code == 0 && !result.out.empty()) return atof(result.out.c_str());
  return MakeStatus(absl::StatusCode::kInternal, "`{}` exited with {}: {}", command, result.exit_code,
                    result.err);
}

// Reads /big/noise in both containers: what the guest's page cache grows by, what the two QEMUs map.
absl::Status MeasureReading(Bench& bench, const std::vector<std::string>& pods,
                            const std::vector<std::string>& containers) {
  constexpr char kCached[] = "awk '/^Cached:/ {print $2}' /proc/meminfo";
  persist::StateStore store(FileSystem::Real(), bench.node.state_dir());
  double growth = 0;
  for (const std::string& container : containers) {
    // Once before, so that the programs themselves are not counted.
    RETURN_IF_ERROR(Number(bench.node, container, kCached).status());
    ASSIGN_OR_RETURN(const double before, Number(bench.node, container, kCached));
    ASSIGN_OR_RETURN(const double read,
                     Number(bench.node, container,
                            "dd if=/big/noise of=/dev/null bs=65536 2>/dev/null && stat -c %s /big/noise"));
    ASSIGN_OR_RETURN(const double after, Number(bench.node, container, kCached));
    if (read != static_cast<double>(kFileBytes))
      return MakeStatus(absl::StatusCode::kInternal, "read {} bytes of {}", read, kFileBytes);
    growth = std::max(growth, (after - before) * 1024);
  }
  double worst = 0, resident = 0;
  for (const std::string& pod : pods) {
    ASSIGN_OR_RETURN(const persist::SandboxState state, store.Load(pod));
    ASSIGN_OR_RETURN(const MappedBytes arenas,
                     MappingMemory(static_cast<pid_t>(state.vmm.pid), bench.node.state_dir() + "/layers/"));
    if (arenas.resident < kFileBytes) {
      return MakeStatus(absl::StatusCode::kInternal,
                        "pod {} has {} bytes of its arenas resident and read a file of {}", pod,
                        arenas.resident, kFileBytes);
    }
    resident = std::max(resident, static_cast<double>(arenas.resident));
    worst = std::max(worst, static_cast<double>(arenas.proportional) / static_cast<double>(arenas.resident));
  }
  bench.report.Section("reading a layer's file of 40 MiB in two pods");
  bench.report.AtMost("guest's page cache growth / bytes read", std::max(growth, 0.0) / kFileBytes,
                      kCacheGrowth, "");
  bench.report.AtMost("arenas in QEMU, Pss / Rss", worst, kSharedPss, "", "the larger of the two pods'");
  bench.report.Show("arenas in QEMU", resident / kMiBf, "MiB", "Rss");
  return absl::OkStatus();
}

}  // namespace

absl::Status MeasureLayers(Bench& bench) {
  e2e::CriClient& cri = bench.node.cri();
  std::vector<double> first, second, starts[2];
  std::vector<MountTime> times[2];
  double grown = 0, converted = 0;
  for (int round = 0; round < bench.rounds; ++round) {
    const e2e::Image image = ImageOfRound(bench.images, round);
    RETURN_IF_ERROR(bench.node.Import(image));
    std::vector<std::string> pods, containers;
    for (int i = 0; i < 2; ++i) {
      ASSIGN_OR_RETURN(pods.emplace_back(), cri.RunPod(SmallPod(i == 0 ? "first" : "second")));
      const std::string store = bench.node.state_dir() + "/layers";
      const uint64_t disk = BytesOnDisk(store);
      ASSIGN_OR_RETURN(const double conversions, Metric(bench.node, "lamina_layer_conversions_total"));
      e2e::ContainerSpec container;
      container.image = image.name;
      container.command = {"sleep", "1000000"};
      ASSIGN_OR_RETURN(containers.emplace_back(), cri.CreateContainer(pods.back(), container));
      const auto start = std::chrono::steady_clock::now();
      RETURN_IF_ERROR(cri.StartContainer(containers.back()));
      starts[i].push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      ASSIGN_OR_RETURN(times[i].emplace_back(), MountTimeOf(bench.node, containers.back()));
      (i == 0 ? first : second).push_back(times[i].back().total());
      if (i == 0) continue;
      const uint64_t now = BytesOnDisk(store);
      grown = std::max(grown, now > disk ? static_cast<double>(now - disk) : 0);
      ASSIGN_OR_RETURN(const double more, Metric(bench.node, "lamina_layer_conversions_total"));
      converted += more - conversions;
    }
    if (round + 1 == bench.rounds) RETURN_IF_ERROR(MeasureReading(bench, pods, containers));
    for (const std::string& pod : pods) RETURN_IF_ERROR(cri.RemovePod(pod));
  }
  const auto part = [&](int pod, double MountTime::*field) {
    std::vector<double> values;
    for (const MountTime& time : times[pod]) values.push_back(time.*field);
    return Median(values);
  };
  bench.report.Section(fmt::format("second pod of an image of 4 layers (median of {})", bench.rounds));
  bench.report.AtMost("new bytes on disk", grown, 0, "B", "largest of all rounds");
  bench.report.AtMost("conversions", converted, 0, "", "all rounds");
  bench.report.AtMost("layers mounted, second / first pod", Median(second) / Median(first), kSecondPod, "");
  for (int i = 0; i < 2; ++i) {
    const char* which = i == 0 ? "first" : "second";
    bench.report.Show(fmt::format("- {} pod: placed", which), part(i, &MountTime::place), "s");
    bench.report.Show(fmt::format("- {} pod: attached", which), part(i, &MountTime::attach), "s");
    bench.report.Show(fmt::format("- {} pod: mounted", which), part(i, &MountTime::mount), "s");
    bench.report.Show("  - waiting for devices", part(i, &MountTime::wait), "s", "in the guest");
    bench.report.Show(fmt::format("- {} pod: StartContainer", which), Median(starts[i]), "s", "with crun");
  }
  return absl::OkStatus();
}

}  // namespace lamina::bench
