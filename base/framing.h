// The frames that durable files are made of: what a file is, of which version, and whether it is as it was
// written. A frame is a line of text and a payload:
//
//   lamina-<kind> <version> <payload's length> <payload's CRC-32> <CRC-32 of the line up to here>\n<payload>
//
// Numbers are decimal, checksums eight lower-case hex digits. Each later version keeps the first two words
// and the last, so that every Lamina can tell a newer file from a damaged one.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina {

struct FrameKind {
  std::string_view name;  // letters
  int oldest = 1;         // the first version that was framed so
  int newest = 1;         // the one that is written; none above it is read
};

// The file in an error's message.
struct FramedFile {
  std::string path;
  std::string advice;  // what an operator can do about a damaged one; may be empty
};

struct Frame {
  int version = 0;
  std::string_view payload;  // of the content that was read
  size_t size = 0;           // of line and payload
};

// Of the kind's newest version.
std::string EncodeFrame(const FrameKind& kind, std::string_view payload);

// The frame with which `content` begins. FailedPrecondition: it is of a newer version. DataLoss: it is of
// another kind, damaged or cut short; the message says what is wrong.
absl::StatusOr<Frame> NextFrame(const FrameKind& kind, std::string_view content, const FramedFile& file);

// The same where `content` is to be one frame and nothing else; DataLoss if more follows.
absl::StatusOr<Frame> OnlyFrame(const FrameKind& kind, std::string_view content, const FramedFile& file);

// Where in `content`, at `from` or later, a whole frame begins.
std::optional<size_t> FindFrame(const FrameKind& kind, std::string_view content, size_t from);

// DataLoss: "<path>: damaged (<why>); <advice>".
absl::Status DamagedFile(const FramedFile& file, std::string_view why);

}  // namespace lamina
