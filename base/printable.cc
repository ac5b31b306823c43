#include "base/printable.h"

#include <fmt/format.h>

namespace lamina {
namespace {

std::string Escaped(char c) {
  if (c == '\n') return "\\n";
  if (c == '\t') return "\\t";
  if (c >= ' ' && c <= '~') return std::string(1, c);
  return fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
}

}  // namespace

std::string Printable(std::string_view text, size_t limit) {
  constexpr std::string_view kCut = "...";
  std::string out;
  size_t fits = 0;  // how much of `out` may stay when it is cut
  for (const char c : text) {
    out += Escaped(c);
    if (out.size() > limit) return out.substr(0, fits).append(kCut);
    if (out.size() + kCut.size() <= limit) fits = out.size();
  }
  return out;
}

}  // namespace lamina
