#include "sizing/claims_replay.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/status.h"
#include "base/units.h"
#include "sizing/ledger.h"

namespace lamina::sizing {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kShown = 200;  // of a line that is not understood

const char* ResultOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return "ok";
    case absl::StatusCode::kResourceExhausted:
      return "no-memory";
    case absl::StatusCode::kAlreadyExists:
      return "exists";
    case absl::StatusCode::kNotFound:
      return "not-found";
    case absl::StatusCode::kFailedPrecondition:
      return "dying";
    default:
      return "invalid";
  }
}

std::vector<std::string> Words(std::string_view line) {
  constexpr std::string_view kSpace = " \t\r\v\f";
  std::vector<std::string> words;
  for (size_t at = 0; (at = line.find_first_not_of(kSpace, at)) != std::string_view::npos;) {
    const size_t end = std::min(line.find_first_of(kSpace, at), line.size());
    words.emplace_back(line.substr(at, end - at));
    at = end;
  }
  return words;
}

// Operation -> how many sizes follow the id.
const std::map<std::string, size_t>& Operations() {
  static const std::map<std::string, size_t> operations = {{"claim", 1},    {"range", 2},  {"populate", 1},
                                                           {"commit", 0},   {"fail", 0},   {"dead", 0},
                                                           {"retarget", 1}, {"release", 0}};
  return operations;
}

absl::Status Run(Ledger& ledger, const std::vector<std::string>& words, Json& out) {
  const auto operation = Operations().find(words[0]);
  if (operation == Operations().end()) {
    return InvalidArgument(
        "\"{:.{}}\" is no operation; there are claim, range, populate, commit, fail, dead, retarget, release",
        words[0], kShown);
  }
  if (words.size() != operation->second + 2) {
    return InvalidArgument("{} takes an id and {} sizes, here are {} words", words[0], operation->second,
                           words.size() - 1);
  }
  const std::string &op = words[0], &id = words[1];
  uint64_t sizes[2] = {};
  for (size_t i = 0; i < operation->second; ++i) {
    ASSIGN_OR_RETURN(sizes[i], ParseBytes(words[i + 2], op));
  }
  if (op == "claim") return ledger.Claim(id, sizes[0]).status();
  if (op == "range") {
    ASSIGN_OR_RETURN(const RangeGrant grant, ledger.ClaimRange(id, sizes[0], sizes[1]));
    out["granted"] = grant.bytes;
    return absl::OkStatus();
  }
  if (op == "populate") return ledger.Populate(id, sizes[0]);
  if (op == "commit") return ledger.EndBuild(id, BuildEnd::kWell);
  if (op == "fail") return ledger.EndBuild(id, BuildEnd::kFailed);
  if (op == "dead") return ledger.Dead(id);
  if (op == "retarget") return ledger.Retarget(id, 0, sizes[0]);
  ledger.Release(id);
  return absl::OkStatus();
}

}  // namespace

ClaimsSummary ReplayClaims(std::string_view trace, uint64_t capacity_bytes,
                           const std::function<void(const std::string& json)>& emit) {
  Ledger ledger(capacity_bytes);
  ClaimsSummary summary;
  summary.capacity_bytes = summary.least_available_bytes = capacity_bytes;
  for (const char* result : {"ok", "no-memory", "exists", "not-found", "dying", "invalid"})
    summary.results[result] = 0;
  size_t number = 0;
  for (size_t at = 0; at < trace.size();) {
    const size_t end = std::min(trace.find('\n', at), trace.size());
    const std::vector<std::string> words = Words(trace.substr(at, end - at));
    at = end + 1;
    ++number;
    if (words.empty() || words[0][0] == '#') continue;
    Json out = {{"line", number}, {"op", words[0].substr(0, kShown)}};
    if (words.size() > 1) out["id"] = words[1].substr(0, kShown);
    out["result"] = "";
    const absl::Status status = Run(ledger, words, out);
    out["result"] = ResultOf(status.code());
    const uint64_t available = ledger.totals().available_bytes;
    out["available"] = available;
    if (!status.ok()) out["error"] = Message(status);
    summary.least_available_bytes = std::min(summary.least_available_bytes, available);
    ++summary.lines;
    ++summary.results[ResultOf(status.code())];
    emit(out.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  const LedgerTotals totals = ledger.totals();
  summary.claimed_bytes = totals.claimed_bytes;
  summary.resident_bytes = totals.resident_bytes;
  summary.available_bytes = totals.available_bytes;
  summary.entries = totals.entries;
  for (const LedgerEntry& entry : ledger.entries()) summary.dying += entry.dying;
  Json last = {{"lines", summary.lines}, {"results", summary.results}};
  last["capacity"] = summary.capacity_bytes;
  last["claimed"] = summary.claimed_bytes;
  last["resident"] = summary.resident_bytes;
  last["available"] = summary.available_bytes;
  last["least_available"] = summary.least_available_bytes;
  last["entries"] = summary.entries;
  last["dying"] = summary.dying;
  emit(Json{{"summary", last}}.dump());
  return summary;
}

}  // namespace lamina::sizing
