#include "base/ttrpc/client.h"

#include <fcntl.h>
#include <google/protobuf/message_lite.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "base/mutex.h"
#include "base/printable.h"
#include "base/status.h"
#include "base/ttrpc/frame.h"
#include "base/ttrpc/thread.h"
#include "base/unix_socket.h"
#include "proto/ttrpc.pb.h"

namespace lamina::ttrpc {
namespace {

using std::chrono::steady_clock;
using Deadline = std::optional<steady_clock::time_point>;

constexpr size_t kReaderStackBytes = 64 * 1024;
constexpr size_t kMaxErrorBytes = 4096;  // of a peer's error: it goes into logs, events and other answers

// Milliseconds for poll(2); -1 without a deadline, 0 when it has passed.
int PollTimeout(const Deadline& deadline) {
  if (!deadline) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(*deadline - steady_clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1'000'000));
}

}  // namespace

// Shared with the reader thread, which outlives the Client by an instant at most.
class Client::Impl : public std::enable_shared_from_this<Client::Impl> {
 public:
  Impl(UniqueFd fd, std::string name)
      : fd_(std::move(fd)), wake_(eventfd(0, EFD_CLOEXEC)), name_(std::move(name)) {
    fcntl(fd_.get(), F_SETFL, fcntl(fd_.get(), F_GETFL) | O_NONBLOCK);
  }

  // On error every call answers that error.
  absl::Status Start() {
    absl::Status status =
        wake_ ? StartThread(kReaderStackBytes, [self = shared_from_this()] { self->ReadLoop(); })
              : absl::ResourceExhaustedError("no free descriptor (eventfd)");
    if (!status.ok()) {
      status = Annotate(status, name_);
      Lose(status);
    }
    return status;
  }

  void Close() {
    Lose(MakeStatus(absl::StatusCode::kCancelled, "{}: the connection was closed here", name_));
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(wake_.get(), &one, sizeof one);
  }

  bool connected() {
    MutexLock lock(mutex_);
    return lost_.ok();
  }

  void CancelCalls() {
    MutexLock lock(mutex_);
    for (auto& [id, pending] : pending_) {
      if (pending->done) continue;
      pending->done = true;
      pending->error = MakeStatus(absl::StatusCode::kCancelled, "{}: the call was cancelled here", name_);
      pending->condition.NotifyAll();
    }
  }

  absl::Status Call(std::string_view service, std::string_view method,
                    const google::protobuf::MessageLite& request, google::protobuf::MessageLite* response,
                    std::chrono::nanoseconds timeout, const std::map<std::string, std::string>& metadata) {
    const Deadline deadline = timeout == kNoTimeout ? Deadline() : Deadline(steady_clock::now() + timeout);
    lamina::ttrpc::Request envelope;
    envelope.set_service(std::string(service));
    envelope.set_method(std::string(method));
    request.SerializeToString(envelope.mutable_payload());
    envelope.set_timeout_nano(timeout.count());
    for (const auto& [key, value] : metadata) {
      KeyValue* pair = envelope.add_metadata();
      pair->set_key(key);
      pair->set_value(value);
    }
    Frame frame;
    frame.type = FrameType::kRequest;
    envelope.SerializeToString(&frame.payload);

    Pending pending;
    {
      MutexLock lock(mutex_);
      if (!lost_.ok()) return lost_;
      frame.stream_id = next_id_;
      next_id_ += 2;
      pending_[frame.stream_id] = &pending;
    }
    absl::StatusOr<std::string> bytes = EncodeFrame(frame);
    absl::Status sent = bytes.ok() ? Send(*bytes, deadline) : bytes.status();

    MutexLock lock(mutex_);
    while (sent.ok() && !pending.done && lost_.ok()) {
      if (!deadline) {
        pending.condition.Wait(mutex_);
      } else if (!pending.condition.WaitUntil(mutex_, *deadline) && !pending.done && lost_.ok()) {
        sent = MakeStatus(absl::StatusCode::kDeadlineExceeded, "{}: no answer to {} within {} ms", name_,
                          method, std::chrono::duration_cast<std::chrono::milliseconds>(timeout).count());
      }
    }
    pending_.erase(frame.stream_id);
    if (!pending.done) return sent.ok() ? lost_ : sent;
    if (!pending.error.ok()) return pending.error;
    lamina::ttrpc::Response answer;
    if (!answer.ParseFromString(pending.payload)) {
      return MakeStatus(absl::StatusCode::kInternal, "{}: the answer to {} does not parse", name_, method);
    }
    if (answer.status().code() != 0) {
      const int code = answer.status().code();
      return absl::Status(
          code >= 1 && code <= 16 ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown,
          Printable(answer.status().message(), kMaxErrorBytes));
    }
    if (response != nullptr && !response->ParseFromString(answer.payload())) {
      return MakeStatus(absl::StatusCode::kInternal, "{}: the payload of the answer to {} does not parse",
                        name_, method);
    }
    return absl::OkStatus();
  }

 private:
  struct Pending {
    CondVar condition;
    bool done = false;
    std::string payload;
    absl::Status error;
  };

  // Whole frames only: one writer at a time. Half a frame sent when the deadline passes leaves the stream
  // useless.
  absl::Status Send(std::string_view bytes, const Deadline& deadline) {
    MutexLock lock(write_mutex_);
    bool started = false;
    while (!bytes.empty()) {
      {
        MutexLock state(mutex_);
        if (!lost_.ok()) return lost_;
      }
      const ssize_t n = WriteQuietly(fd_.get(), bytes.data(), bytes.size());
      if (n > 0) {
        started = true;
        bytes.remove_prefix(static_cast<size_t>(n));
        continue;
      }
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno != EAGAIN) {
        const absl::Status status =
            MakeStatus(absl::StatusCode::kUnavailable, "{}: connection lost: {}", name_, strerror(errno));
        Lose(status);
        return status;
      }
      pollfd poll_fd{fd_.get(), POLLOUT, 0};
      const int timeout = PollTimeout(deadline);
      const int ready = timeout == 0 ? 0 : poll(&poll_fd, 1, timeout < 0 ? 1000 : std::min(timeout, 1000));
      if (ready == 0 && deadline && PollTimeout(deadline) == 0) {
        const absl::Status status = MakeStatus(absl::StatusCode::kDeadlineExceeded,
                                               "{}: the peer did not take the request in time", name_);
        if (started) Lose(MakeStatus(absl::StatusCode::kUnavailable, "{}: a request was cut off", name_));
        return status;
      }
    }
    return absl::OkStatus();
  }

  void Lose(const absl::Status& status) {
    MutexLock lock(mutex_);
    if (!lost_.ok()) return;
    lost_ = status;
    shutdown(fd_.get(), SHUT_RDWR);
    for (auto& [id, pending] : pending_) pending->condition.NotifyAll();
  }

  void ReadLoop() {
    FrameReader reader;
    Frame frame;
    std::string buffer(16 * 1024, '\0');
    for (;;) {
      pollfd fds[2] = {{fd_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
      if (poll(fds, 2, -1) < 0) {
        if (errno == EINTR) continue;
        return Lose(ErrnoStatus(errno, "poll"));
      }
      if (fds[1].revents != 0) return;
      const ssize_t n = read(fd_.get(), buffer.data(), buffer.size());
      if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (n <= 0) return Lose(MakeStatus(absl::StatusCode::kUnavailable, "{}: the connection ended", name_));
      reader.Feed({buffer.data(), static_cast<size_t>(n)});
      for (;;) {
        const absl::StatusOr<bool> more = reader.Next(frame);
        if (!more.ok()) {
          return Lose(MakeStatus(absl::StatusCode::kUnavailable, "{}: {}", name_, Message(more.status())));
        }
        if (!*more) break;
        if (frame.type != FrameType::kResponse) continue;
        MutexLock lock(mutex_);
        const auto it = pending_.find(frame.stream_id);
        if (it == pending_.end() || it->second->done) continue;
        it->second->done = true;
        it->second->payload = std::move(frame.payload);
        if (frame.oversized) {
          it->second->error =
              MakeStatus(absl::StatusCode::kResourceExhausted, "{}: the answer is over 4 MiB", name_);
        }
        it->second->condition.NotifyAll();
      }
    }
  }

  const UniqueFd fd_, wake_;
  const std::string name_;
  Mutex write_mutex_;  // before mutex_
  Mutex mutex_;
  absl::Status lost_ GUARDED_BY(mutex_);
  uint32_t next_id_ GUARDED_BY(mutex_) = 1;
  std::map<uint32_t, Pending*> pending_ GUARDED_BY(mutex_);
};

Client::Client(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() { impl_->Close(); }

std::unique_ptr<Client> Client::FromFd(UniqueFd fd, std::string name) {
  auto impl = std::make_shared<Impl>(std::move(fd), std::move(name));
  impl->Start().IgnoreError();  // said by each call
  return std::unique_ptr<Client>(new Client(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<Client>> Client::Dial(const std::string& path, std::string name) {
  absl::StatusOr<UniqueFd> fd = ConnectUnix(path);
  if (fd.status().code() == absl::StatusCode::kNotFound)
    return MakeStatus(absl::StatusCode::kUnavailable, "{}: {}", name, Message(fd.status()));
  if (!fd.ok()) return Annotate(fd.status(), name);
  auto impl = std::make_shared<Impl>(std::move(*fd), std::move(name));
  RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<Client>(new Client(std::move(impl)));
}

absl::Status Client::Call(std::string_view service, std::string_view method,
                          const google::protobuf::MessageLite& request,
                          google::protobuf::MessageLite* response, std::chrono::nanoseconds timeout,
                          const std::map<std::string, std::string>& metadata) {
  const std::shared_ptr<Impl> impl = impl_;  // the client may be destroyed meanwhile: that ends the call
  return impl->Call(service, method, request, response, timeout, metadata);
}

void Client::CancelCalls() { impl_->CancelCalls(); }

void Client::Close() { impl_->Close(); }

bool Client::connected() const { return impl_->connected(); }

}  // namespace lamina::ttrpc
