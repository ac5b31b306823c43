#include "base/units.h"

#include <algorithm>
#include <iterator>

#include "base/status.h"

namespace lamina {
namespace {

struct Decimal {
  unsigned __int128 digits = 0;  // value = digits / 10^scale
  int scale = 0;
  std::string_view suffix;
};

// Reads "12.5" and leaves what follows in `suffix`; at most 20 digits, so that nothing overflows.
bool ReadDecimal(std::string_view text, Decimal& out) {
  int count = 0;
  bool point = false, any = false;
  size_t i = 0;
  for (; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '.' && !point) {
      point = true;
    } else if (c >= '0' && c <= '9') {
      any = true;
      if (out.digits != 0 || c != '0') ++count;
      if (count > 20) return false;
      out.digits = out.digits * 10 + static_cast<unsigned>(c - '0');
      if (point) ++out.scale;
      if (out.scale > 18) return false;
    } else {
      break;
    }
  }
  if (!any || (i > 0 && text[i - 1] == '.')) return false;
  out.suffix = text.substr(i);
  return true;
}

struct Suffix {
  std::string_view name;
  uint64_t factor;
};

constexpr uint64_t kPiB = 1024 * kTiB;
constexpr Suffix kByteSuffixes[] = {
    {"", 1},      {"B", 1},         {"Ki", kKiB},        {"KiB", kKiB},
    {"Mi", kMiB}, {"MiB", kMiB},    {"Gi", kGiB},        {"GiB", kGiB},
    {"Ti", kTiB}, {"TiB", kTiB},    {"Pi", kPiB},        {"PiB", kPiB},
    {"k", 1000},  {"M", 1000'000},  {"G", 1000'000'000}, {"T", 1000'000'000'000},
    {"e3", 1000}, {"e6", 1000'000}, {"e9", 1000'000'000}};

}  // namespace

absl::StatusOr<uint64_t> ParseBytes(std::string_view text, std::string_view what) {
  Decimal d;
  if (!ReadDecimal(text, d)) {
    return InvalidArgument("{}: \"{}\" is not a size; write for example 64MiB or 67108864", what, text);
  }
  const auto* suffix = std::find_if(std::begin(kByteSuffixes), std::end(kByteSuffixes),
                                    [&](const Suffix& s) { return s.name == d.suffix; });
  if (suffix == std::end(kByteSuffixes)) {
    return InvalidArgument("{}: \"{}\" has an unknown unit \"{}\"; use B, KiB, MiB, GiB or TiB", what, text,
                           d.suffix);
  }
  unsigned __int128 value = d.digits * suffix->factor;
  for (int i = 0; i < d.scale; ++i) {
    if (value % 10 != 0) return InvalidArgument("{}: \"{}\" is not a whole number of bytes", what, text);
    value /= 10;
  }
  if (value > INT64_MAX) return InvalidArgument("{}: \"{}\" is too large", what, text);
  return static_cast<uint64_t>(value);
}

absl::StatusOr<int64_t> ParseCpus(std::string_view text, std::string_view what) {
  Decimal d;
  if (!ReadDecimal(text, d) || (!d.suffix.empty() && d.suffix != "m")) {
    return InvalidArgument("{}: \"{}\" is not a number of CPUs; write for example 0.5 or 250m", what, text);
  }
  unsigned __int128 value = d.digits * (d.suffix == "m" ? 1'000'000u : 1'000'000'000u);
  for (int i = 0; i < d.scale; ++i) {
    if (value % 10 != 0)
      return InvalidArgument("{}: \"{}\" has more than nine decimals of a CPU", what, text);
    value /= 10;
  }
  if (value > static_cast<unsigned __int128>(1'000'000) * 1'000'000'000) {
    return InvalidArgument("{}: \"{}\" is more than 1000000 CPUs", what, text);
  }
  return static_cast<int64_t>(value);
}

std::string FormatBytes(uint64_t bytes) {
  if (bytes == 0) return "0B";
  constexpr Suffix kUnits[] = {{"TiB", kTiB}, {"GiB", kGiB}, {"MiB", kMiB}, {"KiB", kKiB}};
  for (const Suffix& unit : kUnits) {
    if (bytes % unit.factor == 0) return fmt::format("{}{}", bytes / unit.factor, unit.name);
  }
  return fmt::format("{}B", bytes);
}

std::string FormatCpus(int64_t nano_cpus) {
  std::string text = fmt::format("{}.{:09}", nano_cpus / 1'000'000'000, nano_cpus % 1'000'000'000);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

}  // namespace lamina
