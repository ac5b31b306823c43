// A pod in a VM, through a containerd of its own, with every decision in plain words. --keep leaves it
// running.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/file_system.h"
#include "base/status.h"
#include "base/units.h"
#include "tests/e2e/kit/images.h"
#include "tests/e2e/kit/node.h"

namespace lamina {
namespace {

using nlohmann::json;
using std::chrono::steady_clock;

constexpr double kMiBf = 1024.0 * 1024.0;

void Head(const std::string& text) { fmt::print("\n\033[1m{}\033[0m\n", text); }
void Say(const std::string& text) {
  fmt::print("  {}\n", text);
  fflush(stdout);
}

double Seconds(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

absl::StatusOr<json> View(e2e::Node& node, const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, node.Rest(path));
  json view = json::parse(text, nullptr, false);
  if (view.is_discarded())
    return MakeStatus(absl::StatusCode::kInternal, "{}: laminad did not answer JSON", path);
  return view;
}

const json* FindById(const json& list, const std::string& id) {
  for (const json& item : list) {
    if (item.value("id", "") == id) return &item;
  }
  return nullptr;
}

absl::Status ShowDecision(e2e::Node& node, const std::string& pod) {
  ASSIGN_OR_RETURN(const json sandboxes, View(node, "/v1/sandboxes"));
  const json* sandbox = FindById(sandboxes["sandboxes"], pod);
  if (sandbox == nullptr) return absl::NotFoundError("laminad does not list the pod");
  Head("Sizing: overhead and limits added exactly, rounded up once");
  for (const json& reason : (*sandbox)["reasons"]) Say("- " + reason.get<std::string>());
  Say(fmt::format("=> {} vCPU ({} exactly; rounding each part would take {}), {} MiB",
                  (*sandbox)["vcpus"].get<int>(), sandbox->value("vcpus_exact", ""),
                  (*sandbox)["vcpus_if_rounded_per_container"].get<int>(),
                  (*sandbox)["memory_bytes"].get<uint64_t>() >> 20));

  ASSIGN_OR_RETURN(const json claims, View(node, "/v1/claims"));
  Head("Claim: memory promised before QEMU started");
  if (const json* claim = FindById(claims["claims"], pod)) {
    Say(fmt::format("this pod {:.0f} MiB (guest and its hypervisor), resident so far {:.0f} MiB",
                    (*claim)["target_bytes"].get<uint64_t>() / kMiBf,
                    (*claim)["resident_bytes"].get<uint64_t>() / kMiBf));
  }
  Say(fmt::format(
      "node: {:.0f} MiB claimed of {:.0f}, {:.0f} available", claims["claimed_bytes"].get<uint64_t>() / kMiBf,
      claims["capacity_bytes"].get<uint64_t>() / kMiBf, claims["available_bytes"].get<uint64_t>() / kMiBf));

  Head("Boot by phase");
  for (const char* phase : {"claim", "prepare", "qemu", "kernel", "agent", "configure", "total"}) {
    const json& boot = (*sandbox)["boot_seconds"];
    if (boot.contains(phase)) Say(fmt::format("{:<10} {:7.3f} s", phase, boot[phase].get<double>()));
  }
  Head("State on disk");
  Say(sandbox->value("state_path", ""));
  return absl::OkStatus();
}

absl::Status ShowLayers(e2e::Node& node, const std::string& pod, const std::string& other) {
  ASSIGN_OR_RETURN(const json layers, View(node, "/v1/layers"));
  Say(fmt::format("{:<14} {:<7} {:<10} {:>12} {:>10}  {}", "layer", "kind", "arena", "offset", "size",
                  "who"));
  for (const json& layer : layers["layers"]) {
    bool mine = false, shared = false;
    for (const json& user : layer["users"]) {
      mine = mine || user == pod;
      shared = shared || (!other.empty() && user == other);
    }
    if (!mine) continue;
    const bool scsi = layer.value("kind", "") == "scsi";
    Say(fmt::format("{:<14} {:<7} {:<10} {:>12} {:>8.2f}Mi  {}", layer.value("id", "").substr(0, 12),
                    scsi ? "scsi" : "vpmem", scsi ? "-" : layer.value("arena", ""),
                    scsi ? "-" : std::to_string(layer["offset"].get<uint64_t>()),
                    layer["payload_bytes"].get<uint64_t>() / kMiBf,
                    shared ? "shared with the other pod" : "new"));
  }
  return absl::OkStatus();
}

absl::Status ShowGuest(e2e::Node& node, const std::string& container) {
  Head("What the guest says of itself");
  for (const auto& [title, command] : std::vector<std::pair<std::string, std::string>>{
           {"nproc", "nproc"},
           {"memory", "grep -E 'MemTotal|MemAvailable' /proc/meminfo"},
           {"kernel", "uname -r"},
           {"mounts", "grep -E ' / |pmem|overlay|virtiofs|lamina' /proc/mounts"}}) {
    ASSIGN_OR_RETURN(const e2e::ExecResult result,
                     node.cri().ExecSync(container, {"/bin/sh", "-c", command}));
    size_t start = 0;
    while (start < result.out.size()) {
      const size_t end = std::min(result.out.find('\n', start), result.out.size());
      Say(fmt::format("{:<8} {}", start == 0 ? title : "",
                      result.out.substr(start, std::min<size_t>(end - start, 150))));
      start = end + 1;
    }
  }
  return absl::OkStatus();
}

absl::Status Run(e2e::Node& node) {
  ASSIGN_OR_RETURN(const e2e::ImageKit kit, e2e::ImageKit::Create(e2e::CacheDir(), e2e::ProbePath()));
  Head("Images");
  for (const e2e::Image& image : {kit.Pause(), kit.Busybox(), kit.Big()}) {
    RETURN_IF_ERROR(node.Import(image));
    Say(fmt::format("{} ({} layers)", image.name, image.layers.size()));
  }
  e2e::PodSpec pod;
  pod.name = "first";
  pod.resources.cpu_quota = 25000;
  pod.resources.cpu_period = 100000;
  pod.resources.memory = 128 << 20;
  Head("First pod: limits 250m CPU and 128 MiB, overhead 0.5 CPU and 96 MiB");
  Say("booting its VM …");
  auto start = steady_clock::now();
  ASSIGN_OR_RETURN(const std::string first, node.cri().RunPod(pod));
  Say(fmt::format("ready after {:.2f} s", Seconds(start)));
  RETURN_IF_ERROR(ShowDecision(node, first));

  e2e::ContainerSpec container;
  container.image = e2e::kBigImage;
  container.command = {"/bin/sh", "-c", "echo Hello from $(hostname), a pod in a VM; exec sleep 3600"};
  container.resources.cpu_quota = 25000;
  container.resources.memory = 128 << 20;
  start = steady_clock::now();
  ASSIGN_OR_RETURN(const std::string one, node.cri().RunContainer(first, container));
  const double first_seconds = Seconds(start);
  Head(fmt::format(
      "Layers of {}: each an EROFS image, converted and placed in {:.2f} s with the container's start",
      container.image, first_seconds));
  RETURN_IF_ERROR(ShowLayers(node, first, ""));
  RETURN_IF_ERROR(ShowGuest(node, one));
  Head("The container's output, from kubelet's log file");
  std::string log;
  for (const auto deadline = steady_clock::now() + std::chrono::seconds(10);
       log.empty() && steady_clock::now() < deadline;) {
    ASSIGN_OR_RETURN(log, node.cri().LogText(one));
  }
  Say(log.empty() ? "(nothing)" : log.substr(0, log.size() - 1));

  Head("Second pod, same image: its layers are there already");
  ASSIGN_OR_RETURN(const json before, View(node, "/v1/arenas"));
  pod.name = "second";
  start = steady_clock::now();
  ASSIGN_OR_RETURN(const std::string second, node.cri().RunPod(pod));
  Say(fmt::format("VM ready after {:.2f} s", Seconds(start)));
  start = steady_clock::now();
  ASSIGN_OR_RETURN(const std::string two, node.cri().RunContainer(second, container));
  Say(fmt::format("container started after {:.2f} s (the first: {:.2f} s)", Seconds(start), first_seconds));
  RETURN_IF_ERROR(ShowLayers(node, second, first));
  ASSIGN_OR_RETURN(const json after, View(node, "/v1/arenas"));
  uint64_t held_before = 0, held_after = 0;
  for (const json& arena : before["arenas"]) held_before += arena["held_bytes"].get<uint64_t>();
  for (const json& arena : after["arenas"]) held_after += arena["held_bytes"].get<uint64_t>();
  Say(fmt::format("bytes held in arenas: {:.2f} MiB before, {:.2f} MiB after", held_before / kMiBf,
                  held_after / kMiBf));

  Head("Some metrics");
  ASSIGN_OR_RETURN(const std::string metrics, node.Rest("/metrics"));
  for (size_t at = 0; at < metrics.size();) {
    const size_t end = std::min(metrics.find('\n', at), metrics.size());
    const std::string line = metrics.substr(at, end - at);
    for (const char* wanted : {"lamina_sandboxes ", "lamina_memory_claimed", "lamina_layers_placed",
                               "lamina_layer_reuses", "lamina_arena_bytes"}) {
      if (line.rfind(wanted, 0) == 0) Say(line);
    }
    at = end + 1;
  }
  return absl::OkStatus();
}

int Main(bool keep) {
  const auto begin = steady_clock::now();
  Head("Lamina: a pod in a virtual machine of its own");
  e2e::NodeOptions options;
  options.config["sizing.overhead_cpu"] = "\"0.5\"";
  options.config["sizing.overhead_memory"] = "\"96MiB\"";
  options.config["hypervisor.accel"] = "\"auto\"";
  Say("starting a containerd and a laminad of its own …");
  auto started = e2e::Node::Start(options);
  if (!started.ok()) {
    fmt::print(stderr, "demo: {}\n", Message(started.status()));
    return 1;
  }
  e2e::Node& node = **started;
  Say(fmt::format("in {}", node.dir()));
  const absl::Status status = Run(node);
  if (!status.ok()) fmt::print(stderr, "\ndemo: {}\n{}\n", Message(status), node.LogTails());
  if (keep && status.ok()) {
    Head("Left running (--keep). Look around:");
    Say(fmt::format("curl http://{}/metrics     also /v1/sandboxes /v1/claims /v1/arenas /v1/layers",
                    node.rest_address()));
    Say(fmt::format("build/bin/lamina --config {} sandboxes", node.config_path()));
    Say(fmt::format("ctr --address {} -n k8s.io tasks ls", node.containerd_socket()));
    Say("press Ctrl-C to clean up");
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    int number = 0;
    sigwait(&signals, &number);
  }
  Head("Cleaning up");
  const absl::Status stopped = node.Stop();
  if (stopped.ok()) {
    Say("no process, mount, tap, cgroup, socket, claim or state file is left");
  } else {
    fmt::print(stderr, "demo: {}\n", Message(stopped));
  }
  Say(fmt::format("all in {:.1f} s", Seconds(begin)));
  return status.ok() && stopped.ok() ? 0 : 1;
}

}  // namespace
}  // namespace lamina

int main(int argc, char** argv) {
  const bool keep = argc > 1 && std::string(argv[1]) == "--keep";
  if (argc > (keep ? 2 : 1)) {
    fmt::print(stderr, "usage: lamina_demo [--keep]\n");
    return 2;
  }
  // For --keep: taken by sigwait only.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  if (keep) pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return lamina::Main(keep);
}
