#include <algorithm>
#include <cstdio>
#include <iterator>

#include "base/file_system.h"
#include "base/printable.h"
#include "base/status.h"
#include "base/units.h"
#include "cli/cli.h"

namespace lamina::cli {
namespace {

constexpr size_t kInputLimit = 64 * kMiB;
constexpr size_t kMaxPrintedBytes = 4096;

}  // namespace

int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kPermissionDenied:  // an annotation that the node does not allow
      return kExitInvalid;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return kExitUnavailable;
    default:
      return kExitFailure;
  }
}

absl::StatusOr<Config> ReadConfig(const Common& common) {
  absl::StatusOr<Config> config = common.config.empty() ? LoadDefaultConfig() : LoadConfig(common.config);
  // A file that was named and cannot be read is the caller's mistake.
  if (!config.ok() && config.status().code() == absl::StatusCode::kNotFound)
    return InvalidArgument("{}", Message(config.status()));
  return config;
}

absl::StatusOr<std::string> ReadInput(const std::string& path) {
  if (path != "-") {
    absl::StatusOr<std::string> text = FileSystem::Real().Read(path, kInputLimit);
    if (!text.ok()) return InvalidArgument("{}", Message(text.status()));
    return text;
  }
  std::string text;
  char buffer[65536];
  for (size_t n; (n = fread(buffer, 1, sizeof buffer, stdin)) > 0;) {
    if (text.size() + n > kInputLimit)
      return InvalidArgument("standard input is longer than {}", FormatBytes(kInputLimit));
    text.append(buffer, n);
  }
  return text;
}

void Table::Add(std::vector<std::string> row) {
  for (std::string& cell : row) cell = Printable(cell);
  rows_.push_back(std::move(row));
}

std::string Table::ToString() const {
  std::vector<size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line.append(widths[i] - row[i].size() + 2, ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string HumanBytes(uint64_t bytes) {
  const char* const kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  const int decimals = unit == 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  std::string text = fmt::format("{:.{}f}", value, decimals);
  if (text.find('.') != std::string::npos) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
  }
  return text + kUnits[unit];
}

std::string HumanSeconds(double seconds) {
  if (seconds < 0) return "0s";
  if (seconds < 120) return fmt::format("{:.0f}s", seconds);
  if (seconds < 120 * 60) return fmt::format("{:.0f}m", seconds / 60);
  if (seconds < 48 * 3600) return fmt::format("{:.0f}h", seconds / 3600);
  return fmt::format("{:.0f}d", seconds / 86400);
}

std::string ShortId(const std::string& id) { return Printable(id.substr(0, 13)); }

std::string Printable(const std::string& text) { return lamina::Printable(text, kMaxPrintedBytes); }

}  // namespace lamina::cli
