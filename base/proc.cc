#include "base/proc.h"

#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>

#include "base/status.h"

namespace lamina {
namespace {

// What stands before `separator`, which is taken off with it; all that is left where there is none.
std::string_view Take(std::string_view& rest, char separator) {
  const std::string_view taken = rest.substr(0, rest.find(separator));
  rest.remove_prefix(std::min(rest.size(), taken.size() + 1));
  return taken;
}

bool IsOctal(char c) { return c >= '0' && c <= '7'; }

// mountinfo writes space, tab, newline and backslash as three octal digits.
std::string Unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size() && IsOctal(text[i + 1]) && IsOctal(text[i + 2]) &&
        IsOctal(text[i + 3])) {
      out.push_back(
          static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0')));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

}  // namespace

uint64_t KernelBytes(std::string_view text, std::string_view key) {
  while (!text.empty()) {
    // Only where a line begins: a process gives itself any name, and status tells it.
    std::string_view line = Take(text, '\n');
    if (line.starts_with("Node ")) Take(line, ' '), Take(line, ' ');
    if (!line.starts_with(key) || !line.substr(key.size()).starts_with(':')) continue;
    line.remove_prefix(std::min(line.size(), line.find_first_not_of(" \t", key.size() + 1)));
    uint64_t kib = 0;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), kib);
    return error == std::errc() ? kib * 1024 : 0;
  }
  return 0;
}

std::vector<MountEntry> ParseMountinfo(std::string_view text) {
  std::vector<MountEntry> entries;
  while (!text.empty()) {
    std::string_view line = Take(text, '\n');
    // id, parent, device, root, mount point, options, optional fields, a dash, type, source, more options
    Take(line, ' '), Take(line, ' ');
    MountEntry entry;
    entry.device = Take(line, ' ');
    entry.root = Unescape(Take(line, ' '));
    entry.point = Unescape(Take(line, ' '));
    const size_t dash = line.find(" - ");
    if (dash == std::string_view::npos) continue;
    line.remove_prefix(dash + 3);
    entry.type = Take(line, ' ');
    entry.source = Unescape(Take(line, ' '));
    entries.push_back(std::move(entry));
  }
  return entries;
}

absl::StatusOr<std::string> OwnProgram() {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
  if (length <= 0) return ErrnoStatus(errno, "readlink /proc/self/exe");
  return std::string(path, static_cast<size_t>(length));
}

}  // namespace lamina
