// A trace of claims run against the ledger's rules alone: what a node of some capacity would grant.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

namespace lamina::sizing {

struct ClaimsSummary {
  size_t lines = 0;                       // that were answered
  std::map<std::string, size_t> results;  // "ok", "no-memory", "exists", "not-found", "dying", "invalid"
  uint64_t capacity_bytes = 0, claimed_bytes = 0, resident_bytes = 0, available_bytes = 0;
  uint64_t least_available_bytes = 0;  // of all moments
  size_t entries = 0, dying = 0;       // at the end
};

// Lines of `trace`: "claim ID SIZE", "range ID MIN MAX", "populate ID SIZE", "commit ID", "fail ID", "dead
// ID", "retarget ID SIZE", "release ID"; sizes in bytes or with KiB, MiB, GiB, TiB. Empty lines and lines
// that begin with # are passed over. `emit` gets one JSON object for each line, without a newline:
//   {"line":1,"op":"range","id":"a","result":"ok","granted":1073741824,"available":67645734912}
// "granted" comes with a range that is ok, "error" (a sentence) with every other result than ok. A line that
// is none of these is "invalid" and changes nothing; the trace goes on. The last object is {"summary":{…}}.
// Release is ok whether or not there is such an entry: repeated, it finds none.
ClaimsSummary ReplayClaims(std::string_view trace, uint64_t capacity_bytes,
                           const std::function<void(const std::string& json)>& emit);

}  // namespace lamina::sizing
