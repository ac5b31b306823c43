// lamina: explains what Lamina decides on this node. The only file that knows CLI11.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <string>

#include "base/status.h"
#include "cli/cli.h"

namespace lamina::cli {
namespace {

constexpr char kFooter[] =
    "Exit codes: 0 done, 1 failure, 2 invalid input, 3 laminad unavailable.\n"
    "size and the replays need neither laminad nor a config.";

int Main(int argc, char** argv) {
  CLI::App app("Explains and shows what Lamina decides on this node.", "lamina");
  app.footer(kFooter);
  app.require_subcommand(1);
  app.fallthrough();
  Common common;
  std::string output = "table";
  app.add_option("--config", common.config, "config file (default: $LAMINA_CONFIG, /etc/lamina/config.toml)");
  app.add_option("-o,--output", output, "table or json")->check(CLI::IsMember({"table", "json"}));

  std::function<absl::Status()> run;
  const auto command = [&run](CLI::App* parent, const char* name, const char* help,
                              std::function<absl::Status()> body) {
    CLI::App* sub = parent->add_subcommand(name, help);
    sub->fallthrough();
    // Of nested commands the inner one is parsed last and wins.
    sub->parse_complete_callback([&run, body] {
      if (!run) run = body;
    });
    return sub;
  };

  SizeFlags size;
  CLI::App* size_command =
      command(&app, "size", "how large a pod's VM is, and why", [&] { return Size(common, size); });
  size_command->add_option("--overhead-cpu", size.overhead_cpu,
                           "CPUs added to the pod's, such as 0.5 or 250m");
  size_command->add_option("--overhead-memory", size.overhead_memory,
                           "memory added to the pod's, such as 64MiB");
  size_command->add_option("--default-cpu", size.default_cpu, "CPUs of a pod without a CPU limit");
  size_command->add_option("--default-memory", size.default_memory, "memory of a pod without a memory limit");
  size_command->add_option("--max-cpu", size.max_cpu, "most vCPUs, 0: no maximum");
  size_command->add_option("--max-memory", size.max_memory, "most memory, 0: no maximum");
  size_command->add_option("--quota", size.quota,
                           "the pod's CPU quota in microseconds per period; -1: by shares, 0: no limit");
  size_command->add_option("--period", size.period, "the quota's period in microseconds (default 100000)");
  size_command->add_option("--shares", size.shares, "the pod's CPU shares; count with quota -1");
  size_command->add_option("--memory", size.memory,
                           "the pod's memory limit in bytes or with a unit; 0, -1: no limit");
  size_command->add_option("--container", size.containers,
                           "a container's limits, cpu=250m,memory=128Mi; repeatable");
  size_command->add_option("--spec", size.spec,
                           "take the limits from the annotations of a sandbox's config.json (- for stdin)");

  command(&app, "sandboxes", "the node's sandboxes", [&] { return Sandboxes(common); });

  std::string sandbox;
  command(&app, "explain", "one sandbox: its size and why, its boot, its volumes and layers",
          [&] { return Explain(common, sandbox); })
      ->add_option("SANDBOX", sandbox, "id, a unique beginning of it, or namespace/pod")
      ->required();

  CLI::App* claims =
      command(&app, "claims", "who was promised how much memory", [&] { return Claims(common); });
  std::string capacity, claims_trace;
  CLI::App* claims_replay = command(claims, "replay", "run a trace of claims against the ledger's rules",
                                    [&] { return ReplayClaims(common, capacity, claims_trace); });
  claims_replay->add_option("--capacity", capacity, "memory to grant from, such as 64GiB")->required();
  claims_replay->add_option("TRACE", claims_trace, "file, - for stdin")->required();

  command(&app, "arenas", "the devices that hold layers", [&] { return Arenas(common); });

  CLI::App* layers =
      command(&app, "layers", "what is where, used by whom, how full", [&] { return Layers(common); });
  std::string keep;
  command(layers, "gc", "drop layers that no sandbox uses", [&] {
    return CollectLayers(common, keep);
  })->add_option("--keep", keep, "how much of them may stay, such as 1GiB (default 0)");
  command(layers, "pack", "move layers that no sandbox uses together, so that arenas can go",
          [&] { return PackLayers(common); });
  std::string policy = "dense", device_size = "4GiB", layers_trace;
  uint32_t devices = 1;
  CLI::App* layers_replay = command(layers, "replay", "run a trace of layers against an allocator", [&] {
    return ReplayLayers(common, policy, device_size, devices, layers_trace);
  });
  layers_replay->add_option("--policy", policy, "classic or dense")
      ->check(CLI::IsMember({"classic", "dense"}));
  layers_replay->add_option(
      "--device-size", device_size,
      "size of one device (default 4GiB); classic takes 1, 4, 16, 64, 256MiB, 1 or 4GiB, dense "
      "multiples of 2MiB");
  layers_replay->add_option("--devices", devices, "how many")->check(CLI::Range(1, 1024));
  layers_replay->add_option("TRACE", layers_trace, "file, - for stdin")->required();

  bool repair = false;
  command(&app, "doctor", "whether this host can run Lamina's pods", [&] {
    return Doctor(common, repair);
  })->add_flag("--repair", repair, "end sandboxes whose shim is gone: VM, mounts, claim, state");
  command(&app, "version", "this program's version", [&] { return Version(common); });

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitInvalid;
  }
  common.json = output == "json";
  const absl::Status status = run();
  const bool written = fflush(stdout) == 0;  // before the error, where both go to one pipe
  if (!status.ok()) {
    fmt::print(stderr, "lamina: {}\n", Printable(Message(status)));
  } else if (!written) {
    fmt::print(stderr, "lamina: the output could not be written\n");
    return kExitFailure;
  }
  return ExitCode(status);
}

}  // namespace
}  // namespace lamina::cli

// CLI11 throws where the commands contradict each other, which every test of the CLI would see.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) { return lamina::cli::Main(argc, argv); }
