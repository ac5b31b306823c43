// The commands of `lamina`. main.cc parses the command line; each command prints to stdout and returns
// what went wrong, which main turns into an exit code: 0 done, 1 failure, 2 invalid input, 3 laminad
// unavailable.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/config.h"

namespace google::protobuf {
class Message;
}

namespace lamina::cli {

inline constexpr int kExitOk = 0, kExitFailure = 1, kExitInvalid = 2, kExitUnavailable = 3;

int ExitCode(const absl::Status& status);

struct Common {
  bool json = false;
  std::string config;  // file; empty: $LAMINA_CONFIG, /etc/lamina/config.toml, the defaults
};
absl::StatusOr<Config> ReadConfig(const Common& common);

// Texts as they were typed; empty: not given.
struct SizeFlags {
  std::string overhead_cpu, overhead_memory, default_cpu, default_memory, max_cpu, max_memory;
  std::string quota, period, shares, memory;
  std::vector<std::string> containers;  // "cpu=250m,memory=128Mi"
  std::string spec;                     // the sandbox's config.json
};
// Needs neither laminad nor a config file: with common.config empty the built-in defaults hold.
absl::Status Size(const Common& common, const SizeFlags& flags);

absl::Status Sandboxes(const Common& common);
// `sandbox`: id, a unique beginning of one, or namespace/pod.
absl::Status Explain(const Common& common, const std::string& sandbox);
absl::Status Claims(const Common& common);
absl::Status Arenas(const Common& common);
absl::Status Layers(const Common& common);
absl::Status CollectLayers(const Common& common, const std::string& keep);
absl::Status PackLayers(const Common& common);
// `trace` "-": stdin. Neither needs laminad nor a config.
absl::Status ReplayClaims(const Common& common, const std::string& capacity, const std::string& trace);
absl::Status ReplayLayers(const Common& common, const std::string& policy, const std::string& device_size,
                          uint32_t devices, const std::string& trace);
// Internal when a check failed. `repair`: ends sandboxes whose shim is gone.
absl::Status Doctor(const Common& common, bool repair);
absl::Status Version(const Common& common);

// --- for the commands ---

struct LaminadAnswer {
  std::string sentence;    // how it fares
  std::string unconfined;  // what is missing of the confinement of what reads layers; empty: nothing
};
// Unavailable when it does not answer, FailedPrecondition when it answers and grants nothing.
absl::StatusOr<LaminadAnswer> AskLaminad(const Common& common);

// A file's content, or stdin's for "-"; at most 64 MiB.
absl::StatusOr<std::string> ReadInput(const std::string& path);

// Columns as wide as their widest cell; two spaces between them, none at a line's end.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  void Add(std::vector<std::string> row);  // each cell as Printable() has it
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// Rounded to three digits, for tables: "1.25GiB", "320MiB".
std::string HumanBytes(uint64_t bytes);
// "12s", "3m", "5h", "2d".
std::string HumanSeconds(double seconds);
std::string ShortId(const std::string& id);
// Pods' names and guests' words stay out of the terminal's control: base/printable.h's, 4 KiB at most.
std::string Printable(const std::string& text);

}  // namespace lamina::cli
