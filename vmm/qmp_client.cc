#include "vmm/qmp_client.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/status.h"

namespace lamina::vmm {
namespace {

using nlohmann::json;
using std::chrono::steady_clock;

constexpr size_t kMaxEvents = 256;
constexpr int kMaxDepth = 64;  // the JSON library writes nested values recursively

std::string Text(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

int MillisUntil(steady_clock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - steady_clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 60'000));
}

}  // namespace

std::string JsonText(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    } else {
      out.push_back(c);
    }
  }
  return out + "\"";
}

absl::StatusOr<QmpMessage> ParseQmpLine(std::string_view line) {
  bool too_deep = false;
  const auto limit_depth = [&](int depth, json::parse_event_t event, json&) {
    const bool begins =
        event == json::parse_event_t::object_start || event == json::parse_event_t::array_start;
    too_deep = too_deep || (begins && depth > kMaxDepth);
    return !too_deep;
  };
  const json root = json::parse(line, limit_depth, false);
  if (too_deep) return InvalidArgument("QMP: nested deeper than {}: {:.80}", kMaxDepth, std::string(line));
  if (root.is_discarded() || !root.is_object()) {
    return InvalidArgument("QMP: not a JSON object: {:.80}", std::string(line));
  }
  QmpMessage message;
  if (const auto id = root.find("id"); id != root.end() && id->is_number_unsigned())
    message.id = id->get<uint64_t>();
  if (root.contains("QMP")) {
    message.kind = QmpMessage::kGreeting;
  } else if (const auto value = root.find("return"); value != root.end()) {
    message.kind = QmpMessage::kReturn;
    message.return_json = value->dump(-1, ' ', false, json::error_handler_t::replace);
  } else if (const auto error = root.find("error"); error != root.end() && error->is_object()) {
    message.kind = QmpMessage::kError;
    message.error_class = Text(*error, "class");
    message.error_text = Text(*error, "desc");
  } else if (root.contains("event")) {
    message.kind = QmpMessage::kEvent;
    message.event.name = Text(root, "event");
    if (const auto data = root.find("data"); data != root.end() && data->is_object()) {
      message.event.device = Text(*data, "device");
      message.event.path = Text(*data, "path");
    }
  } else {
    return InvalidArgument("QMP: neither return, error nor event: {:.80}", std::string(line));
  }
  return message;
}

absl::StatusOr<QmpMessage> QmpClient::ReadMessage(steady_clock::time_point deadline) {
  for (;;) {
    const size_t newline = buffer_.find('\n');
    if (newline != std::string::npos) {
      absl::StatusOr<QmpMessage> message = ParseQmpLine(std::string_view(buffer_).substr(0, newline));
      buffer_.erase(0, newline + 1);
      return message;
    }
    if (buffer_.size() > kQmpMaxLineBytes)
      return absl::InternalError("QMP: a line from QEMU is longer than 1 MiB");
    pollfd poll_fd{fd_.get(), POLLIN, 0};
    const int timeout = MillisUntil(deadline);
    const int ready = poll(&poll_fd, 1, timeout);
    if (ready == 0 && MillisUntil(deadline) == 0)
      return absl::DeadlineExceededError("QMP: no answer from QEMU in time");
    if (ready < 0 && errno != EINTR) return ErrnoStatus(errno, "QMP: poll");
    if (ready <= 0) continue;
    char chunk[4096];
    const ssize_t n = read(fd_.get(), chunk, sizeof chunk);
    if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN))
      return absl::UnavailableError("QMP: QEMU is gone");
    if (n > 0) buffer_.append(chunk, static_cast<size_t>(n));
  }
}

absl::Status QmpClient::Send(const std::string& line, steady_clock::time_point deadline) {
  std::string_view rest = line;
  while (!rest.empty()) {
    const ssize_t n = send(fd_.get(), rest.data(), rest.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      rest.remove_prefix(static_cast<size_t>(n));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return absl::UnavailableError("QMP: QEMU is gone");
    pollfd poll_fd{fd_.get(), POLLOUT, 0};
    if (poll(&poll_fd, 1, MillisUntil(deadline)) == 0 && MillisUntil(deadline) == 0) {
      // Half a command may be on its way: nothing sensible can follow it.
      shutdown(fd_.get(), SHUT_RDWR);
      return absl::DeadlineExceededError("QMP: QEMU does not take commands");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<QmpClient>> QmpClient::Connect(const std::string& path,
                                                              steady_clock::time_point deadline,
                                                              const std::function<absl::Status()>& alive) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return InvalidArgument("socket path {} is longer than {} bytes", path, sizeof address.sun_path - 1);
  }
  memcpy(address.sun_path, path.data(), path.size());
  for (;;) {
    UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd) return ErrnoStatus(errno, "socket");
    if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
      return FromFd(std::move(fd), deadline);
    if (errno != ENOENT && errno != ECONNREFUSED) return ErrnoStatus(errno, "connect to " + path);
    RETURN_IF_ERROR(alive());
    if (MillisUntil(deadline) == 0)
      return MakeStatus(absl::StatusCode::kDeadlineExceeded, "QEMU did not open {} in time", path);
    poll(nullptr, 0, 5);  // QEMU gives no sign when its socket is there
  }
}

absl::StatusOr<std::unique_ptr<QmpClient>> QmpClient::FromFd(UniqueFd fd, steady_clock::time_point deadline) {
  std::unique_ptr<QmpClient> client(new QmpClient(std::move(fd)));
  {
    MutexLock lock(client->mutex_);
    ASSIGN_OR_RETURN(const QmpMessage greeting, client->ReadMessage(deadline));
    if (greeting.kind != QmpMessage::kGreeting) return absl::InternalError("QMP: QEMU did not greet");
  }
  const auto left = std::chrono::milliseconds(MillisUntil(deadline));
  ASSIGN_OR_RETURN(const std::string ignored, client->Execute("qmp_capabilities", "", left));
  return client;
}

absl::StatusOr<std::string> QmpClient::Execute(const std::string& command, const std::string& arguments,
                                               std::chrono::milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  MutexLock lock(mutex_);
  const uint64_t id = next_id_++;
  const std::string line =
      arguments.empty()
          ? fmt::format("{{\"execute\":\"{}\",\"id\":{}}}\n", command, id)
          : fmt::format("{{\"execute\":\"{}\",\"arguments\":{},\"id\":{}}}\n", command, arguments, id);
  RETURN_IF_ERROR(Send(line, deadline));
  for (;;) {
    ASSIGN_OR_RETURN(QmpMessage message, ReadMessage(deadline));
    if (message.kind == QmpMessage::kEvent || message.id != id) {
      // However much comes that nobody asked for, the deadline holds.
      if (MillisUntil(deadline) == 0) {
        return MakeStatus(absl::StatusCode::kDeadlineExceeded, "QMP: {} not answered in time", command);
      }
    }
    if (message.kind == QmpMessage::kEvent) {
      events_.push_back(std::move(message.event));
      if (events_.size() > kMaxEvents) events_.pop_front();
      continue;
    }
    if (message.id != id) continue;  // the late answer to a command that was given up
    if (message.kind == QmpMessage::kReturn) return std::move(message.return_json);
    return MakeStatus(
        message.error_class == "DeviceNotFound" ? absl::StatusCode::kNotFound : absl::StatusCode::kInternal,
        "QEMU refused {}: {}", command, message.error_text);
  }
}

void QmpClient::ForgetDeleted(const std::string& device) {
  MutexLock lock(mutex_);
  events_.erase(std::remove_if(events_.begin(), events_.end(),
                               [&](const QmpEvent& event) {
                                 return event.name == "DEVICE_DELETED" && event.device == device;
                               }),
                events_.end());
}

absl::Status QmpClient::WaitDeviceDeleted(const std::string& device, std::chrono::milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  MutexLock lock(mutex_);
  const auto matches = [&](const QmpEvent& event) {
    return event.name == "DEVICE_DELETED" && event.device == device;
  };
  if (const auto it = std::find_if(events_.begin(), events_.end(), matches); it != events_.end()) {
    events_.erase(it);
    return absl::OkStatus();
  }
  for (;;) {
    ASSIGN_OR_RETURN(QmpMessage message, ReadMessage(deadline));
    if (message.kind == QmpMessage::kEvent && matches(message.event)) return absl::OkStatus();
    if (MillisUntil(deadline) == 0) {
      return MakeStatus(absl::StatusCode::kDeadlineExceeded, "QEMU has not removed {} in time", device);
    }
    if (message.kind != QmpMessage::kEvent) continue;
    events_.push_back(std::move(message.event));
    if (events_.size() > kMaxEvents) events_.pop_front();
  }
}

}  // namespace lamina::vmm
