#include "vmm/qmp_client.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/printable.h"
#include "base/status.h"

namespace lamina::vmm {
namespace {

using nlohmann::json;
using std::chrono::steady_clock;

constexpr size_t kMaxEvents = 256, kMaxDeviceBytes = 128, kMaxErrorBytes = 512;
constexpr std::chrono::milliseconds kSlice{50};  // of a wait for an event, while which nobody else reads
constexpr int kMaxDepth = 64;                    // the JSON library writes nested values recursively

std::string Text(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

int MillisUntil(steady_clock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - steady_clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 60'000));
}

ssize_t SendWith(int socket, std::string_view text, int fd) {
  iovec part{const_cast<char*>(text.data()), text.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  return sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
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
  if (too_deep)
    return InvalidArgument("QMP: nested deeper than {}: {:.80}", kMaxDepth, Printable(line, kMaxErrorBytes));
  if (root.is_discarded() || !root.is_object()) {
    return InvalidArgument("QMP: not a JSON object: {:.80}", Printable(line, kMaxErrorBytes));
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
    message.error_class = Printable(Text(*error, "class"), kMaxErrorBytes);
    message.error_text = Printable(Text(*error, "desc"), kMaxErrorBytes);
  } else if (root.contains("event")) {
    message.kind = QmpMessage::kEvent;
    message.event.name = Text(root, "event");
    if (const auto data = root.find("data"); data != root.end() && data->is_object()) {
      message.event.device = Text(*data, "device");
    }
  } else {
    return InvalidArgument("QMP: neither return, error nor event: {:.80}", Printable(line, kMaxErrorBytes));
  }
  return message;
}

// The right to use the socket. Free again at the end of its life.
class QmpClient::Turn {
 public:
  // False: others had it until `deadline`.
  bool Take(QmpClient& client, Deadline deadline) {
    MutexLock lock(client.mutex_);
    ++client.waiting_;
    bool in_time = true;
    while (client.taken_ && in_time) in_time = client.turns_.WaitUntil(client.mutex_, deadline);
    --client.waiting_;
    if (client.taken_) return false;
    client.taken_ = true;
    client_ = &client;
    return true;
  }
  ~Turn() {
    if (client_ == nullptr) return;
    MutexLock lock(client_->mutex_);
    client_->taken_ = false;
    client_->turns_.NotifyAll();
  }

 private:
  QmpClient* client_ = nullptr;
};

absl::StatusOr<QmpMessage> QmpClient::ReadMessage(Deadline deadline) {
  for (;;) {
    const size_t newline = buffer_.find('\n');
    if (newline != std::string::npos) {
      absl::StatusOr<QmpMessage> message = ParseQmpLine(std::string_view(buffer_).substr(0, newline));
      buffer_.erase(0, newline + 1);
      return message;
    }
    if (buffer_.size() > kQmpMaxLineBytes) {
      return MakeStatus(absl::StatusCode::kInternal, "QMP: a line from QEMU is longer than {} KiB",
                        kQmpMaxLineBytes >> 10);
    }
    // Asked before each look: bytes without an end must not hold the caller.
    const int timeout = MillisUntil(deadline);
    pollfd entries[] = {{fd_.get(), POLLIN, 0}, {cancel_fd_, POLLIN, 0}};
    const int ready = poll(entries, 2, timeout);
    if (ready < 0 && errno != EINTR) return ErrnoStatus(errno, "QMP: poll");
    if (ready > 0 && entries[1].revents != 0) return absl::CancelledError("QMP: given up");
    if (timeout == 0) return absl::DeadlineExceededError("QMP: no answer from QEMU in time");
    if (ready <= 0) continue;
    char chunk[4096];
    const ssize_t n = read(fd_.get(), chunk, sizeof chunk);
    if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN))
      return absl::UnavailableError("QMP: QEMU is gone");
    if (n > 0) buffer_.append(chunk, static_cast<size_t>(n));
  }
}

absl::Status QmpClient::Send(const std::string& line, Deadline deadline, int fd) {
  std::string_view rest = line;
  while (!rest.empty()) {
    const ssize_t n = SendWith(fd_.get(), rest, fd);
    if (n > 0) {
      fd = -1;  // it goes with the first byte
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

absl::StatusOr<std::unique_ptr<QmpClient>> QmpClient::Connect(const std::string& path, Deadline deadline,
                                                              const std::function<absl::Status()>& alive,
                                                              int cancel_fd) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return InvalidArgument("socket path {} is longer than {} bytes", path, sizeof address.sun_path - 1);
  }
  memcpy(address.sun_path, path.data(), path.size());
  for (;;) {
    UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd) return ErrnoStatus(errno, "socket");
    if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
      return FromFd(std::move(fd), deadline, cancel_fd);
    // EAGAIN: others fill its queue.
    if (errno != ENOENT && errno != ECONNREFUSED && errno != EAGAIN)
      return ErrnoStatus(errno, "connect to " + path);
    RETURN_IF_ERROR(alive());
    if (MillisUntil(deadline) == 0)
      return MakeStatus(absl::StatusCode::kDeadlineExceeded, "QEMU did not open {} in time", path);
    pollfd cancel{cancel_fd, POLLIN, 0};  // QEMU gives no sign when its socket is there
    if (poll(&cancel, 1, 5) > 0) return absl::CancelledError("given up before QEMU opened " + path);
  }
}

absl::StatusOr<std::unique_ptr<QmpClient>> QmpClient::FromFd(UniqueFd fd, Deadline deadline, int cancel_fd) {
  std::unique_ptr<QmpClient> client(new QmpClient(std::move(fd), cancel_fd));
  ASSIGN_OR_RETURN(const QmpMessage greeting, client->ReadMessage(deadline));
  if (greeting.kind != QmpMessage::kGreeting) return absl::InternalError("QMP: QEMU did not greet");
  RETURN_IF_ERROR(client->Run("qmp_capabilities", "", deadline).status());
  client->cancel_fd_ = -1;
  return client;
}

absl::StatusOr<std::string> QmpClient::Execute(const std::string& command, const std::string& arguments,
                                               std::chrono::milliseconds timeout, int fd) {
  const Deadline deadline = steady_clock::now() + timeout;
  Turn turn;
  if (!turn.Take(*this, deadline)) {
    return MakeStatus(absl::StatusCode::kDeadlineExceeded,
                      "QMP: {} was not sent in time: QEMU has not answered the command before it", command);
  }
  return Run(command, arguments, deadline, fd);
}

absl::StatusOr<std::string> QmpClient::Run(const std::string& command, const std::string& arguments,
                                           Deadline deadline, int fd) {
  const uint64_t id = next_id_++;
  const std::string line =
      arguments.empty()
          ? fmt::format("{{\"execute\":\"{}\",\"id\":{}}}\n", command, id)
          : fmt::format("{{\"execute\":\"{}\",\"arguments\":{},\"id\":{}}}\n", command, arguments, id);
  RETURN_IF_ERROR(Send(line, deadline, fd));
  for (;;) {
    ASSIGN_OR_RETURN(QmpMessage message, ReadMessage(deadline));
    if (message.kind == QmpMessage::kReturn && message.id == id) return std::move(message.return_json);
    if (message.kind == QmpMessage::kError && message.id == id) {
      return MakeStatus(
          message.error_class == "DeviceNotFound" ? absl::StatusCode::kNotFound : absl::StatusCode::kInternal,
          "QEMU refused {}: {}", command, message.error_text);
    }
    // Anything else is an event, or the late answer to a command that was given up. However much comes that
    // nobody asked for, the deadline holds.
    if (message.kind == QmpMessage::kEvent) Remember(message.event);
    if (MillisUntil(deadline) == 0)
      return MakeStatus(absl::StatusCode::kDeadlineExceeded, "QMP: {} not answered in time", command);
  }
}

void QmpClient::Remember(const QmpEvent& event) {
  // Only what somebody may wait for: ids of ours are short.
  if (event.name != "DEVICE_DELETED" || event.device.empty() || event.device.size() > kMaxDeviceBytes) return;
  MutexLock lock(mutex_);
  deleted_.push_back(event.device);
  if (deleted_.size() > kMaxEvents) deleted_.pop_front();
}

bool QmpClient::TakeDeleted(const std::string& device) {
  const auto it = std::find(deleted_.begin(), deleted_.end(), device);
  if (it == deleted_.end()) return false;
  deleted_.erase(it);
  return true;
}

void QmpClient::ForgetDeleted(const std::string& device) {
  MutexLock lock(mutex_);
  deleted_.erase(std::remove(deleted_.begin(), deleted_.end(), device), deleted_.end());
}

absl::Status QmpClient::WaitDeviceDeleted(const std::string& device, std::chrono::milliseconds timeout) {
  const Deadline deadline = steady_clock::now() + timeout;
  for (;;) {
    {
      MutexLock lock(mutex_);
      if (TakeDeleted(device)) return absl::OkStatus();
      // Those who have commands go first.
      const Deadline soon = std::min(deadline, steady_clock::now() + kSlice);
      while (waiting_ > 0 && !taken_ && turns_.WaitUntil(mutex_, soon)) {
      }
    }
    if (MillisUntil(deadline) == 0) {
      return MakeStatus(absl::StatusCode::kDeadlineExceeded, "QEMU has not removed {} in time", device);
    }
    const Deadline slice = std::min(deadline, steady_clock::now() + kSlice);
    Turn turn;
    if (!turn.Take(*this, slice)) continue;
    const absl::StatusOr<QmpMessage> message = ReadMessage(slice);
    if (!message.ok() && !absl::IsDeadlineExceeded(message.status())) return message.status();
    if (message.ok() && message->kind == QmpMessage::kEvent) Remember(message->event);
  }
}

}  // namespace lamina::vmm
