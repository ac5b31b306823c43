// ttrpc on the wire: a 10-byte header (u32 BE length, u32 BE stream id, u8 type, u8 flags), then the payload.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace lamina::ttrpc {

inline constexpr size_t kHeaderBytes = 10;
inline constexpr size_t kMaxPayloadBytes = 4 << 20;

enum class FrameType : uint8_t { kRequest = 1, kResponse = 2, kData = 3 };

struct Frame {
  uint32_t stream_id = 0;
  FrameType type = FrameType::kRequest;
  uint8_t flags = 0;
  std::string payload;
  // The sender's payload was over kMaxPayloadBytes and has been discarded; `payload` is empty.
  bool oversized = false;
};

// The bytes of one frame. ResourceExhausted when the payload is over the limit.
absl::StatusOr<std::string> EncodeFrame(const Frame& frame);

// Cuts frames out of a byte stream, in any slicing. Memory is bounded by one frame. Not thread-safe.
class FrameReader {
 public:
  // Takes bytes from the peer.
  void Feed(std::string_view bytes);
  // The next whole frame; false when more bytes are needed. A frame of unknown type: InvalidArgument, the
  // stream is lost.
  absl::StatusOr<bool> Next(Frame& frame);

 private:
  std::string buffer_;
  size_t skip_bytes_ = 0;  // rest of an oversized payload
};

// write(2) that gives EPIPE and no SIGPIPE when the peer is gone; for sockets and virtio-serial ports.
ssize_t WriteQuietly(int fd, const char* bytes, size_t count);

}  // namespace lamina::ttrpc
