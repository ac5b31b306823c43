#include "base/safe_id.h"

#include <algorithm>

#include "base/status.h"

namespace lamina {
namespace {

constexpr size_t kMaxLength = 128;

bool IsAlnum(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); }

}  // namespace

bool IsSafeId(std::string_view id) {
  return !id.empty() && id.size() <= kMaxLength && IsAlnum(id[0]) &&
         std::all_of(id.begin(), id.end(),
                     [](char c) { return IsAlnum(c) || c == '.' || c == '_' || c == '-'; });
}

absl::Status CheckSafeId(std::string_view id, std::string_view what) {
  if (IsSafeId(id)) return absl::OkStatus();
  return InvalidArgument(
      "{} \"{}\": want 1 to {} of letters, digits, '.', '_', '-', the first a letter or digit", what,
      id.substr(0, kMaxLength + 32), kMaxLength);
}

}  // namespace lamina
