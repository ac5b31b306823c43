#include "vmm/balloon.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "base/units.h"

namespace lamina::vmm {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kTimeout{2000};
constexpr char kDevice[] = "/machine/peripheral/balloon";

absl::StatusOr<uint64_t> Number(const std::string& text, const char* key) {
  const json root = json::parse(text, nullptr, false);
  if (!root.is_object() || !root.contains(key) || !root[key].is_number_unsigned())
    return InvalidArgument("QEMU's answer has no \"{}\": {:.200}", key, text);
  return root[key].get<uint64_t>();
}

}  // namespace

absl::Status ReadGuestStats(const std::string& text, BalloonSample& sample) {
  const json root = json::parse(text, nullptr, false);
  if (!root.is_object() || !root.contains("stats") || !root["stats"].is_object() ||
      !root.contains("last-update") || !root["last-update"].is_number_integer()) {
    return InvalidArgument("guest-stats: not what QEMU answers: {:.200}", text);
  }
  const json& stats = root["stats"];
  const auto known = [&](const char* name) {  // QEMU writes 2^64-1 for what the guest has not said
    return stats.contains(name) && stats[name].is_number_unsigned() &&
           stats[name].get<uint64_t>() != UINT64_MAX;
  };
  if (!known("stat-total-memory") || !known("stat-available-memory")) return absl::OkStatus();
  const uint64_t total = stats["stat-total-memory"].get<uint64_t>(),
                 available = stats["stat-available-memory"].get<uint64_t>();
  // With deflate-on-oom the guest counts the balloon's pages as memory in use. What its kernel set aside at
  // boot is not in its total; where memory was plugged since, the total hides how much that is: more than
  // Linux takes is put in its place.
  const uint64_t set_aside =
      total < sample.base_bytes ? sample.base_bytes - total : sample.base_bytes / 16 + 48 * kMiB;
  const uint64_t used = total > available ? total - available : 0;
  sample.used_bytes = (used > sample.inflated_bytes() ? used - sample.inflated_bytes() : 0) + set_aside;
  sample.stats_unix_seconds = root["last-update"].get<int64_t>();
  return absl::OkStatus();
}

absl::StatusOr<BalloonSample> QmpBalloon::Sample() {
  const auto deadline = steady_clock::now() + kTimeout;
  const auto left = [&] {
    return std::max(std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now()),
                    milliseconds(1));
  };
  if (!asks_) {
    RETURN_IF_ERROR(
        qmp_.Execute("qom-set",
                     fmt::format(R"({{"path":"{}","property":"guest-stats-polling-interval","value":{}}})",
                                 kDevice, kBalloonStatsSeconds),
                     left())
            .status());
    asks_ = true;
  }
  BalloonSample sample;
  sample.base_bytes = base_bytes_;
  ASSIGN_OR_RETURN(const std::string balloon, qmp_.Execute("query-balloon", "", left()));
  ASSIGN_OR_RETURN(sample.actual_bytes, Number(balloon, "actual"));
  ASSIGN_OR_RETURN(
      const std::string stats,
      qmp_.Execute("qom-get", fmt::format(R"({{"path":"{}","property":"guest-stats"}})", kDevice), left()));
  RETURN_IF_ERROR(ReadGuestStats(stats, sample));
  return sample;
}

absl::Status QmpBalloon::SetTarget(uint64_t bytes) {
  if (bytes == 0 || bytes > base_bytes_)
    return InvalidArgument("a balloon's target of {} bytes in a guest of {}", bytes, base_bytes_);
  return qmp_.Execute("balloon", fmt::format(R"({{"value":{}}})", bytes), kTimeout).status();
}

}  // namespace lamina::vmm
