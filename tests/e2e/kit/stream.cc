#include "tests/e2e/kit/stream.h"

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/status.h"

namespace lamina::e2e {
namespace {

enum Opcode : uint8_t { kContinuation = 0, kText = 1, kBinary = 2, kClose = 8, kPing = 9, kPong = 10 };
enum Channel : char { kStdin = 0, kStdout = 1, kStderr = 2, kResult = 3, kResize = 4 };

// The result channel carries a Kubernetes Status: Success, or the exit code as one of its causes.
absl::StatusOr<int> ExitCode(const std::string& result) {
  if (result.empty()) return 0;
  const auto json = nlohmann::json::parse(result, nullptr, false);
  if (!json.is_object())
    return MakeStatus(absl::StatusCode::kInternal, "the stream's result is no JSON: {}", result);
  if (json.value("status", "") == "Success") return 0;
  if (json.contains("details")) {
    for (const auto& cause : json["details"].value("causes", nlohmann::json::array())) {
      if (cause.value("reason", "") == "ExitCode") return atoi(cause.value("message", "0").c_str());
    }
  }
  return MakeStatus(absl::StatusCode::kInternal, "the stream failed: {}", json.value("message", result));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Stream>> Stream::Open(const std::string& url, Deadline deadline) {
  const std::string scheme = "http://";
  const size_t slash = url.find('/', scheme.size());
  const size_t colon = url.find(':', scheme.size());
  if (url.rfind(scheme, 0) != 0 || slash == std::string::npos || colon > slash)
    return InvalidArgument("streaming URL \"{}\" is not http://address:port/path", url);
  const std::string host = url.substr(scheme.size(), colon - scheme.size());
  const auto port = static_cast<uint16_t>(atoi(url.c_str() + colon + 1));
  ASSIGN_OR_RETURN(UniqueFd fd, Connect(host, port, deadline));
  RETURN_IF_ERROR(SendAll(fd.get(),
                          fmt::format("GET {} HTTP/1.1\r\nHost: {}:{}\r\nUpgrade: websocket\r\n"
                                      "Connection: Upgrade\r\nSec-WebSocket-Key: bGFtaW5hLWUyZS1rZXkhIQ==\r\n"
                                      "Sec-WebSocket-Version: 13\r\n"
                                      "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n",
                                      url.substr(slash), host, port),
                          deadline));
  std::unique_ptr<Stream> stream(new Stream(std::move(fd)));
  size_t end;
  while ((end = stream->buffer_.find("\r\n\r\n")) == std::string::npos) {
    ASSIGN_OR_RETURN(const std::string part, Receive(stream->fd_.get(), deadline));
    if (part.empty())
      return MakeStatus(absl::StatusCode::kUnavailable, "{}: closed during the handshake", url);
    stream->buffer_ += part;
  }
  if (stream->buffer_.rfind("HTTP/1.1 101", 0) != 0)
    return MakeStatus(absl::StatusCode::kUnavailable, "{}: no websocket: {}", url, stream->buffer_);
  stream->buffer_.erase(0, end + 4);
  return stream;
}

absl::Status Stream::SendFrame(uint8_t opcode, std::string_view payload, Deadline deadline) {
  std::string frame(1, static_cast<char>(0x80 | opcode));
  // A client's frames are masked; a mask of zeros leaves the payload as it is.
  if (payload.size() < 126) {
    frame += static_cast<char>(0x80 | payload.size());
  } else if (payload.size() < 65536) {
    frame += static_cast<char>(0x80 | 126);
    for (int shift : {8, 0}) frame += static_cast<char>(payload.size() >> shift);
  } else {
    frame += static_cast<char>(0x80 | 127);
    for (int shift = 56; shift >= 0; shift -= 8) frame += static_cast<char>(payload.size() >> shift);
  }
  frame.append(4, '\0');
  frame += payload;
  return SendAll(fd_.get(), frame, deadline);
}

absl::Status Stream::Write(std::string_view data, Deadline deadline) {
  while (!data.empty()) {
    const std::string_view part = data.substr(0, 32 * 1024);
    RETURN_IF_ERROR(SendFrame(kBinary, std::string(1, kStdin) + std::string(part), deadline));
    data.remove_prefix(part.size());
  }
  return absl::OkStatus();
}

absl::Status Stream::Resize(int width, int height, Deadline deadline) {
  return SendFrame(kBinary,
                   std::string(1, kResize) + fmt::format("{{\"Width\":{},\"Height\":{}}}", width, height),
                   deadline);
}

absl::StatusOr<bool> Stream::Fill(size_t bytes, Deadline deadline) {
  while (buffer_.size() < bytes) {
    auto part = Receive(fd_.get(), deadline);
    if (!part.ok()) {
      // The server resets the connection when we still had input on the way.
      if (part.status().code() == absl::StatusCode::kUnavailable) return false;
      return part.status();
    }
    if (part->empty()) return false;
    buffer_ += *part;
  }
  return true;
}

absl::StatusOr<bool> Stream::ReadFrame(Deadline deadline) {
  ASSIGN_OR_RETURN(bool more, Fill(2, deadline));
  if (!more) return false;
  const auto byte = [this](size_t i) { return static_cast<uint8_t>(buffer_[i]); };
  const bool final = (byte(0) & 0x80) != 0;
  const uint8_t opcode = byte(0) & 0x0f;
  uint64_t size = byte(1) & 0x7f;
  size_t header = 2;
  if (size >= 126) {
    header += size == 126 ? 2 : 8;
    ASSIGN_OR_RETURN(more, Fill(header, deadline));
    if (!more) return false;
    size = 0;
    for (size_t i = 2; i < header; ++i) size = size << 8 | byte(i);
  }
  if (size > 64 * 1024 * 1024)
    return MakeStatus(absl::StatusCode::kInternal, "a websocket frame of {} bytes", size);
  ASSIGN_OR_RETURN(more, Fill(header + size, deadline));
  if (!more) return false;
  const std::string payload = buffer_.substr(header, size);
  buffer_.erase(0, header + size);
  if (opcode == kClose) return false;
  if (opcode == kPing) {
    RETURN_IF_ERROR(SendFrame(kPong, payload, deadline));
    return true;
  }
  if (opcode == kPong) return true;
  message_ += payload;
  if (!final) return true;
  if (!message_.empty()) {
    const std::string data = message_.substr(1);
    switch (message_[0]) {
      case kStdout:
        out_ += data;
        break;
      case kStderr:
        err_ += data;
        break;
      case kResult:
        result_ += data;
        break;
      default:
        break;
    }
  }
  message_.clear();
  return true;
}

absl::Status Stream::ReadUntil(std::string_view text, Deadline deadline) {
  while (out_.find(text) == std::string::npos) {
    const auto more = ReadFrame(deadline);
    if (!more.ok())
      return Annotate(more.status(), fmt::format("waiting for \"{}\", have \"{}\"", text, out_));
    if (!*more) {
      return MakeStatus(absl::StatusCode::kOutOfRange,
                        "the session ended before \"{}\"; it printed \"{}\", {}", text, out_, result_);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ExecResult> Stream::Finish(Deadline deadline) {
  for (;;) {
    ASSIGN_OR_RETURN(const bool more, ReadFrame(deadline));
    if (!more) break;
  }
  ASSIGN_OR_RETURN(const int exit_code, ExitCode(result_));
  return ExecResult{out_, err_, exit_code};
}

}  // namespace lamina::e2e
