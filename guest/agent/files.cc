#include "guest/agent/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <limits>

#include "base/file_system.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace lamina::guest {
namespace {

absl::Status WriteAll(int fd, std::string_view data, const std::string& path) {
  while (!data.empty()) {
    const ssize_t n = write(fd, data.data(), data.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "write " + path);
    data.remove_prefix(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ReadKernelFile(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "open " + path);
  std::string text;
  char buffer[4096];
  for (;;) {
    const ssize_t n = read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "read " + path);
    if (n == 0) break;
    text.append(buffer, static_cast<size_t>(n));
    if (text.size() > (1U << 20)) return MakeStatus(absl::StatusCode::kInternal, "{}: over 1 MiB", path);
  }
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

absl::Status WriteKernelFile(const std::string& path, std::string_view value) {
  UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "open " + path);
  ssize_t n;
  do {
    n = write(fd.get(), value.data(), value.size());
  } while (n < 0 && errno == EINTR);
  if (n != static_cast<ssize_t>(value.size())) {
    return ErrnoStatus(n < 0 ? errno : EIO, fmt::format("write \"{}\" to {}", value, path));
  }
  return absl::OkStatus();
}

absl::Status WriteRegularFile(const std::string& path, std::string_view data, int mode) {
  UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode));
  if (!fd) return ErrnoStatus(errno, "create " + path);
  return WriteAll(fd.get(), data, path);
}

absl::StatusOr<uint64_t> ParseCount(std::string_view text) {
  if (text == "max") return std::numeric_limits<uint64_t>::max();
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    return InvalidArgument("\"{}\" is not a number", text.substr(0, 64));
  }
  return value;
}

std::map<std::string, uint64_t> ParseFlatKeyed(std::string_view text) {
  std::map<std::string, uint64_t> values;
  while (!text.empty()) {
    const size_t newline = text.find('\n');
    const std::string_view line = text.substr(0, newline);
    text = newline == std::string_view::npos ? std::string_view() : text.substr(newline + 1);
    const size_t space = line.find(' ');
    if (space == 0 || space == std::string_view::npos) continue;
    const auto value = ParseCount(line.substr(space + 1));
    if (value.ok()) values.emplace(line.substr(0, space), *value);
  }
  return values;
}

absl::Status CheckLayerId(std::string_view id) {
  const bool fine = id.size() == 64 && std::all_of(id.begin(), id.end(), [](char c) {
                      return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
                    });
  if (fine) return absl::OkStatus();
  return InvalidArgument("layer id \"{}\": want 64 lower-case hex digits", id.substr(0, 80));
}

absl::StatusOr<std::vector<uint32_t>> ParseCpuList(std::string_view text) {
  std::vector<uint32_t> cpus;
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string_view item = text.substr(0, comma);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    const size_t dash = item.find('-');
    ASSIGN_OR_RETURN(const uint64_t first, ParseCount(item.substr(0, dash)));
    uint64_t last = first;
    if (dash != std::string_view::npos) {
      ASSIGN_OR_RETURN(last, ParseCount(item.substr(dash + 1)));
    }
    if (last < first || last > 4095)
      return InvalidArgument("\"{}\" is not a list of CPUs", item.substr(0, 64));
    for (uint64_t cpu = first; cpu <= last; ++cpu) cpus.push_back(static_cast<uint32_t>(cpu));
  }
  return cpus;
}

}  // namespace lamina::guest
