#include "base/ttrpc/frame.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/status.h"

namespace lamina::ttrpc {
namespace {

void PutU32(std::string& out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<char>(value >> shift));
}

uint32_t GetU32(const char* bytes) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

}  // namespace

absl::StatusOr<std::string> EncodeFrame(const Frame& frame) {
  if (frame.payload.size() > kMaxPayloadBytes) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "message of {} bytes is over the limit of {}",
                      frame.payload.size(), kMaxPayloadBytes);
  }
  std::string out;
  out.reserve(kHeaderBytes + frame.payload.size());
  PutU32(out, static_cast<uint32_t>(frame.payload.size()));
  PutU32(out, frame.stream_id);
  out.push_back(static_cast<char>(frame.type));
  out.push_back(static_cast<char>(frame.flags));
  out += frame.payload;
  return out;
}

ssize_t WriteQuietly(int fd, const char* bytes, size_t count) {
  const ssize_t n = send(fd, bytes, count, MSG_NOSIGNAL);
  return n < 0 && errno == ENOTSOCK ? write(fd, bytes, count) : n;
}

void FrameReader::Feed(std::string_view bytes) {
  const size_t skipped = std::min(skip_bytes_, bytes.size());
  skip_bytes_ -= skipped;
  buffer_.append(bytes.substr(skipped));
}

absl::StatusOr<bool> FrameReader::Next(Frame& frame) {
  if (buffer_.size() < kHeaderBytes) return false;
  const uint32_t length = GetU32(buffer_.data());
  const auto type = static_cast<uint8_t>(buffer_[8]);
  if (type < 1 || type > 3) return InvalidArgument("ttrpc: frame of unknown type {}", type);
  const bool oversized = length > kMaxPayloadBytes;
  if (!oversized && buffer_.size() < kHeaderBytes + length) return false;
  frame.stream_id = GetU32(buffer_.data() + 4);
  frame.type = static_cast<FrameType>(type);
  frame.flags = static_cast<uint8_t>(buffer_[9]);
  frame.oversized = oversized;
  frame.payload.clear();
  if (oversized) {
    const size_t here = std::min<size_t>(buffer_.size() - kHeaderBytes, length);
    skip_bytes_ = length - here;
    buffer_.erase(0, kHeaderBytes + here);
  } else {
    frame.payload.assign(buffer_, kHeaderBytes, length);
    buffer_.erase(0, kHeaderBytes + length);
  }
  return true;
}

}  // namespace lamina::ttrpc
