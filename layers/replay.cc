#include "layers/replay.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "base/units.h"
#include "layers/device_pool.h"

namespace lamina::layers {
namespace {

using Json = nlohmann::ordered_json;

std::vector<std::string_view> Words(std::string_view line) {
  constexpr std::string_view kSpace = " \t\r\v\f";
  std::vector<std::string_view> words;
  for (size_t at = 0; (at = line.find_first_not_of(kSpace, at)) != std::string_view::npos;) {
    const size_t end = std::min(line.find_first_of(kSpace, at), line.size());
    words.push_back(line.substr(at, end - at));
    at = end;
  }
  return words;
}

absl::Status BadLine(size_t number, std::string_view line, std::string_view why) {
  return InvalidArgument("line {}: \"{}\": {}", number, line.substr(0, 200), why);
}

// A number too large for 64 bits is a size all the same, though no device is that large.
absl::StatusOr<uint64_t> ParseSize(std::string_view word) {
  absl::StatusOr<uint64_t> bytes = ParseBytes(word, "size");
  const size_t unit = std::min(word.find_first_not_of("0123456789"), word.size());
  if (!bytes.ok() && unit > 0 && ParseBytes("1" + std::string(word.substr(unit)), "size").ok())
    return UINT64_MAX;
  return bytes;
}

const char* ResultOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return "ok";
    case absl::StatusCode::kResourceExhausted:
      return "not-enough-space";
    case absl::StatusCode::kNotFound:
      return "not-allocated";
    default:
      return "invalid-size";
  }
}

struct Named {
  DeviceRegion place;
  bool live = false;
};

}  // namespace

absl::StatusOr<ReplaySummary> Replay(std::string_view trace, const ReplayOptions& options,
                                     const std::function<void(const std::string& json)>& emit) {
  if (options.devices == 0) return absl::InvalidArgumentError("replay: at least one device is needed");
  ASSIGN_OR_RETURN(DevicePool pool,
                   DevicePool::Create(options.policy, options.device_bytes, options.devices));
  std::unordered_map<std::string, Named> names;
  ReplaySummary summary;
  size_t number = 0;
  for (size_t at = 0; at < trace.size();) {
    const size_t end = std::min(trace.find('\n', at), trace.size());
    const std::string_view line = trace.substr(at, end - at);
    at = end + 1;
    ++number;
    const std::vector<std::string_view> words = Words(line);
    if (words.empty() || words[0][0] == '#') continue;
    Json out = {{"line", number}, {"op", words[0]}};
    absl::Status status;
    DeviceRegion place;
    if (words[0] == "alloc" && words.size() == 3) {
      const absl::StatusOr<uint64_t> bytes = ParseSize(words[2]);
      if (!bytes.ok()) return BadLine(number, line, Message(bytes.status()));
      Named& named = names[std::string(words[1])];
      if (named.live) return BadLine(number, line, fmt::format("{} is allocated already", words[1]));
      absl::StatusOr<DeviceRegion> found = pool.Allocate(*bytes);
      status = found.status();
      if (found.ok()) {
        place = *found;
        named = {place, true};
      } else {
        ++summary.refused;
      }
    } else if (words[0] == "free" && words.size() == 2) {
      const auto it = names.find(std::string(words[1]));
      // Generations begin at 1: a name that never had a region has a handle that is stale from the start.
      if (it != names.end()) place = it->second.place;
      status = pool.Release(place.device, place.region.handle);
      if (it != names.end()) it->second.live = false;
    } else {
      return BadLine(number, line, "expected \"alloc NAME SIZE\" or \"free NAME\"");
    }
    out["name"] = words[1];
    out["result"] = ResultOf(status.code());
    if (status.ok()) {
      out["device"] = place.device;
      out["offset"] = place.region.offset;
      out["held"] = place.region.held_bytes;
    }
    emit(out.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  const PoolStats stats = pool.stats();
  summary.payload_bytes = stats.payload_bytes;
  summary.held_bytes = stats.held_bytes;
  summary.capacity_bytes = stats.capacity_bytes;
  summary.live = stats.live;
  summary.utilisation = static_cast<double>(stats.payload_bytes) / static_cast<double>(stats.capacity_bytes);
  summary.pristine = pool.pristine();
  emit(Json{{"summary",
             {{"payload", summary.payload_bytes},
              {"held", summary.held_bytes},
              {"capacity", summary.capacity_bytes},
              {"utilisation", summary.utilisation},
              {"live", summary.live},
              {"refused", summary.refused},
              {"pristine", summary.pristine}}}}
           .dump());
  return summary;
}

}  // namespace lamina::layers
