// Traces run against the rules alone: neither laminad nor a config is asked.
#include "layers/replay.h"

#include <fmt/format.h>

#include "base/status.h"
#include "base/units.h"
#include "cli/cli.h"
#include "sizing/claims_replay.h"

namespace lamina::cli {
namespace {

// The trace's lines are answered as they are read, one JSON object each, for people and scripts alike.
void PrintLine(const std::string& json) { fmt::print("{}\n", json); }

}  // namespace

absl::Status ReplayLayers(const Common&, const std::string& policy, const std::string& device_size,
                          uint32_t devices, const std::string& trace) {
  layers::ReplayOptions options;
  ASSIGN_OR_RETURN(options.policy, layers::ParsePolicy(policy));
  options.devices = devices;
  ASSIGN_OR_RETURN(options.device_bytes, ParseBytes(device_size, "--device-size"));
  ASSIGN_OR_RETURN(const std::string text, ReadInput(trace));
  return layers::Replay(text, options, PrintLine).status();
}

absl::Status ReplayClaims(const Common&, const std::string& capacity, const std::string& trace) {
  ASSIGN_OR_RETURN(const uint64_t bytes, ParseBytes(capacity, "--capacity"));
  ASSIGN_OR_RETURN(const std::string text, ReadInput(trace));
  sizing::ReplayClaims(text, bytes, PrintLine);
  return absl::OkStatus();
}

}  // namespace lamina::cli
