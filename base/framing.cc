#include "base/framing.h"

#include <charconv>
#include <cstdint>

#include "base/crc32.h"
#include "base/status.h"

namespace lamina {
namespace {

// Longer than any line; what is not a frame's is not searched to its end.
constexpr size_t kLongestLine = 128;

std::string FirstWord(const FrameKind& kind) { return fmt::format("lamina-{} ", kind.name); }
std::string Checksum(std::string_view bytes) { return fmt::format("{:08x}", Crc32(bytes)); }

// The number that `rest` begins with, and the space behind it.
template <typename T>
bool TakeNumber(std::string_view& rest, T& number) {
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), number);
  const auto used = static_cast<size_t>(end - rest.data());
  if (error != std::errc() || used == rest.size() || rest[used] != ' ') return false;
  rest.remove_prefix(used + 1);
  return true;
}

}  // namespace

absl::Status DamagedFile(const FramedFile& file, std::string_view why) {
  return MakeStatus(absl::StatusCode::kDataLoss, "{}: damaged ({}){}{}", file.path, why,
                    file.advice.empty() ? "" : "; ", file.advice);
}

std::string EncodeFrame(const FrameKind& kind, std::string_view payload) {
  std::string frame =
      fmt::format("lamina-{} {} {} {:08x} ", kind.name, kind.newest, payload.size(), Crc32(payload));
  const uint32_t line = Crc32(frame);
  frame.reserve(frame.size() + 9 + payload.size());
  fmt::format_to(std::back_inserter(frame), "{:08x}\n", line);
  return frame.append(payload);
}

absl::StatusOr<Frame> NextFrame(const FrameKind& kind, std::string_view content, const FramedFile& file) {
  const std::string first = FirstWord(kind);
  if (!content.starts_with(first))
    return DamagedFile(file, fmt::format("it does not begin with \"{}\"", first));
  const size_t newline = content.substr(0, kLongestLine).find('\n');
  if (newline == std::string_view::npos) return DamagedFile(file, "its first line has no end");
  // Of a damaged line no word is believed.
  if (newline < first.size() + 8 ||
      content.substr(newline - 8, 8) != Checksum(content.substr(0, newline - 8))) {
    return DamagedFile(file, "its first line's checksum is wrong");
  }
  std::string_view rest = content.substr(first.size(), newline - 8 - first.size());
  Frame frame;
  if (!TakeNumber(rest, frame.version) || frame.version < 1)
    return DamagedFile(file, "its first line names no version");
  if (frame.version > kind.newest) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "{}: written by a newer Lamina (version {}, this one reads up to {}); left untouched",
                      file.path, frame.version, kind.newest);
  }
  if (frame.version < kind.oldest)
    return DamagedFile(file, fmt::format("version {} had another first line", frame.version));
  uint64_t length = 0;
  if (!TakeNumber(rest, length) || rest.size() != 9 || rest[8] != ' ')
    return DamagedFile(file, "its first line is not \"kind version length checksum checksum\"");
  const std::string_view behind = content.substr(newline + 1);
  if (length > behind.size()) {
    return DamagedFile(file,
                       fmt::format("{} bytes follow its first line, which says {}", behind.size(), length));
  }
  frame.payload = behind.substr(0, length);
  frame.size = newline + 1 + frame.payload.size();
  if (const std::string found = Checksum(frame.payload); rest.substr(0, 8) != found) {
    return DamagedFile(file, fmt::format("checksum {}, its first line says {}", found, rest.substr(0, 8)));
  }
  return frame;
}

absl::StatusOr<Frame> OnlyFrame(const FrameKind& kind, std::string_view content, const FramedFile& file) {
  ASSIGN_OR_RETURN(const Frame frame, NextFrame(kind, content, file));
  if (frame.size != content.size())
    return DamagedFile(file, fmt::format("{} bytes too many at its end", content.size() - frame.size));
  return frame;
}

std::optional<size_t> FindFrame(const FrameKind& kind, std::string_view content, size_t from) {
  const std::string first = FirstWord(kind);
  for (size_t at = content.find(first, from); at != std::string_view::npos;
       at = content.find(first, at + 1)) {
    const absl::StatusOr<Frame> frame = NextFrame(kind, content.substr(at), {});
    if (frame.ok() || absl::IsFailedPrecondition(frame.status())) return at;
  }
  return std::nullopt;
}

}  // namespace lamina
