#include "base/ttrpc/server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <cerrno>
#include <deque>
#include <map>
#include <utility>

#include "base/log.h"
#include "base/mutex.h"
#include "base/printable.h"
#include "base/status.h"
#include "base/ttrpc/frame.h"
#include "base/ttrpc/thread.h"
#include "base/unix_peer.h"
#include "base/unix_socket.h"
#include "proto/ttrpc.pb.h"

namespace lamina::ttrpc {
namespace {

using std::chrono::steady_clock;

constexpr size_t kLoopStackBytes = 128 * 1024;
constexpr size_t kMaxErrorBytes = 4096;
constexpr size_t kMaxQueuedBytes = 16 << 20;  // a peer that does not read this much is dropped
constexpr std::chrono::milliseconds kLinger{500};
constexpr auto kTakenTimeout =
    std::chrono::seconds(1);       // a host that takes nothing holds up nothing for longer
constexpr int kPortPollMs = 20;    // a virtio-serial port without a peer: how often to look again
constexpr int kPausePollMs = 100;  // a listener without a free descriptor: how often to try again

struct Connection {
  explicit Connection(UniqueFd f) : fd(std::move(f)) {}
  const UniqueFd fd;
  bool persistent = false;
  int peer_pid = 0;
  FrameReader reader;  // loop thread only
  Mutex mutex;
  std::string out GUARDED_BY(mutex);
  bool closed GUARDED_BY(mutex) = false;
  bool want_write GUARDED_BY(mutex) = false;
  // How many peers a persistent port has lost: a call's answer goes to the peer that made it or to nobody,
  // because the next one counts its stream ids from 1 again.
  std::atomic<uint64_t> epoch{0};
  bool idle_port = false;  // a persistent port that has no peer; the loop's, once it runs
  std::stop_source gone;   // requested once no answer is sent on it any more
};

struct Listener {
  UniqueFd fd;
  std::string path;  // for the log
  // Not watched, tried from time to time: who waits to be accepted stays ready to read, and the loop would
  // spin.
  bool paused = false;
};

std::string PathOf(int listener) {
  sockaddr_un address{};
  socklen_t length = sizeof address;
  if (getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "a socket";
  address.sun_path[sizeof address.sun_path - 1] = '\0';
  return address.sun_path;
}

}  // namespace

class Server::Impl : public std::enable_shared_from_this<Server::Impl> {
 public:
  explicit Impl(ServerOptions options)
      : options_(options),
        epoll_(epoll_create1(EPOLL_CLOEXEC)),
        wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    wake_status_ = Watch(wake_.get(), EPOLLIN);
  }

  void Register(std::string service, std::string method, Handler handler) {
    handlers_[service][method] = std::move(handler);
  }

  absl::Status AddListener(UniqueFd listener) {
    fcntl(listener.get(), F_SETFL, fcntl(listener.get(), F_GETFL) | O_NONBLOCK);
    MutexLock lock(mutex_);
    if (stopping_) return absl::CancelledError("the server is stopping");
    const int fd = listener.get();
    absl::Status status = Watch(fd, EPOLLIN);
    if (status.ok()) status = EnsureLoop();
    if (status.ok()) {
      listeners_[fd] = {std::move(listener), PathOf(fd)};
    } else {
      Unwatch(fd);
    }
    return status;
  }

  absl::Status AddStream(UniqueFd stream, bool persistent) {
    fcntl(stream.get(), F_SETFL, fcntl(stream.get(), F_GETFL) | O_NONBLOCK);
    MutexLock lock(mutex_);
    if (stopping_) return absl::CancelledError("the server is stopping");
    const int fd = stream.get();
    RETURN_IF_ERROR(AddConnection(std::move(stream), persistent));
    const absl::Status status = EnsureLoop();
    if (!status.ok()) {
      Unwatch(fd);
      connections_.erase(fd);
    }
    return status;
  }

  void Stop() {
    {
      MutexLock lock(mutex_);
      stopping_ = true;
      queue_.clear();  // what has not begun never does
      work_.NotifyAll();
    }
    Wake();
  }

  void Wait() {
    MutexLock lock(mutex_);
    while (!stopping_ || loop_running_ || busy_ > 0) state_.Wait(mutex_);
  }

 private:
  struct Work {
    std::shared_ptr<Connection> connection;
    uint32_t stream_id;
    uint64_t epoch;
    Request request;
  };

  // Also fails when the server has no epoll: nothing is served without.
  absl::Status Watch(int fd, uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.fd = fd;
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0) return absl::OkStatus();
    return ErrnoStatus(errno, "watch a descriptor (epoll_ctl)");
  }

  void Unwatch(int fd) { epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

  void Wake() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(wake_.get(), &one, sizeof one);
  }

  absl::Status AddConnection(UniqueFd fd, bool persistent) REQUIRES(mutex_) {
    auto connection = std::make_shared<Connection>(std::move(fd));
    connection->persistent = persistent;
    if (const absl::StatusOr<UnixPeer> peer = PeerOf(connection->fd.get()); peer.ok())
      connection->peer_pid = peer->pid;
    const int number = connection->fd.get();
    // A virtio-serial port may hold a request before its kernel has heard that the host is there. To read it
    // then would look, at the next read's 0, as if that host had gone, and nobody would be answered.
    connection->idle_port = persistent;
    if (!persistent) RETURN_IF_ERROR(Watch(number, EPOLLIN));
    connections_[number] = std::move(connection);
    return absl::OkStatus();
  }

  // Takes one who waits, if there is one. Without a descriptor for him the listener is paused.
  void Accept(Listener& listener) REQUIRES(mutex_) {
    const int fd = listener.fd.get();
    UniqueFd accepted(accept4(fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    const int error = errno;
    const bool full =
        !accepted && (error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS);
    if (full && !listener.paused) {
      LogWarning("{}; other calls go on, and who waits is taken when it can be done",
                 Message(ErrnoStatus(error, "accept a connection")));
      listener.paused = true;
      Unwatch(fd);
    } else if (!full && listener.paused) {
      listener.paused = !Watch(fd, EPOLLIN).ok();
    }
    if (!accepted) return;
    accepted =
        keeper_.Admit(std::move(accepted), listener.path, connections_.size(), options_.max_connections);
    if (!accepted) return;
    const absl::Status status = AddConnection(std::move(accepted), false);
    if (!status.ok()) LogWarning("a connection is closed unserved: {}", Message(status));
  }

  absl::Status EnsureLoop() REQUIRES(mutex_) {
    RETURN_IF_ERROR(wake_status_);
    if (loop_running_) {
      Wake();
      return absl::OkStatus();
    }
    loop_running_ = true;
    const absl::Status status = StartThread(kLoopStackBytes, [self = shared_from_this()] { self->Loop(); });
    if (!status.ok()) loop_running_ = false;
    return status;
  }

  void Loop() {
    epoll_event events[32];
    std::string buffer(16 * 1024, '\0');
    for (;;) {
      int timeout = -1;
      {
        MutexLock lock(mutex_);
        if (stopping_) break;
        for (auto& [fd, listener] : listeners_) {
          if (listener.paused) Accept(listener);
          if (listener.paused) timeout = kPausePollMs;
        }
        for (auto& [fd, connection] : connections_) {
          if (!connection->idle_port) continue;
          timeout = kPortPollMs;
          pollfd poll_fd{fd, POLLIN, 0};
          if (poll(&poll_fd, 1, 0) > 0 && (poll_fd.revents & POLLHUP) == 0) {
            connection->idle_port = !Watch(fd, EPOLLIN).ok();
          }
        }
      }
      const int count = epoll_wait(epoll_.get(), events, 32, timeout);
      for (int i = 0; i < count; ++i) {
        const int fd = events[i].data.fd;
        if (fd == wake_.get()) {
          uint64_t value;
          [[maybe_unused]] const ssize_t n = read(fd, &value, sizeof value);
          continue;
        }
        std::shared_ptr<Connection> connection;
        {
          MutexLock lock(mutex_);
          if (const auto listener = listeners_.find(fd); listener != listeners_.end()) {
            Accept(listener->second);
            continue;
          }
          const auto it = connections_.find(fd);
          if (it == connections_.end()) continue;
          connection = it->second;
        }
        bool alive = true;
        if ((events[i].events & EPOLLOUT) != 0) alive = Flush(*connection);
        if (alive && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0)
          alive = Receive(connection, buffer);
        if (!alive) Drop(connection);
      }
    }
    std::map<int, std::shared_ptr<Connection>> ended;
    {
      MutexLock lock(mutex_);
      ended.swap(connections_);
      listeners_.clear();
    }
    for (auto& [fd, connection] : ended) {
      {
        MutexLock connection_lock(connection->mutex);
        connection->closed = true;
        Unwatch(fd);
        if (!connection->persistent) shutdown(fd, SHUT_RDWR);
      }
      connection->gone.request_stop();
    }
    ended.clear();
    MutexLock lock(mutex_);
    loop_running_ = false;
    state_.NotifyAll();
  }

  // False when the connection is over.
  bool Receive(const std::shared_ptr<Connection>& connection, std::string& buffer) {
    const ssize_t n = read(connection->fd.get(), buffer.data(), buffer.size());
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (n <= 0) {
      if (!connection->persistent) return false;
      // The host's end is closed: forget the half-received frame and look again from time to time.
      connection->reader = FrameReader();
      {
        MutexLock lock(connection->mutex);
        ++connection->epoch;
        connection->out.clear();
        connection->want_write = false;
      }
      connection->idle_port = true;
      Unwatch(connection->fd.get());
      return true;
    }
    connection->reader.Feed({buffer.data(), static_cast<size_t>(n)});
    Frame frame;
    for (;;) {
      const absl::StatusOr<bool> more = connection->reader.Next(frame);
      if (!more.ok()) {
        // A virtio-serial port cannot be closed: what follows may be a new peer's first frame.
        if (!connection->persistent) return false;
        connection->reader = FrameReader();
        return true;
      }
      if (!*more) return true;
      Dispatch(connection, frame);
    }
  }

  void Dispatch(const std::shared_ptr<Connection>& connection, Frame& frame) {
    if (frame.type != FrameType::kRequest) return;
    const uint64_t epoch = connection->epoch;
    Work work{connection, frame.stream_id, epoch, {}};
    if (frame.oversized) {
      return Answer(*connection, epoch, frame.stream_id,
                    absl::ResourceExhaustedError("the request is over 4 MiB"));
    }
    if (!work.request.ParseFromString(frame.payload)) {
      return Answer(*connection, epoch, frame.stream_id,
                    absl::InvalidArgumentError("the request does not parse"));
    }
    MutexLock lock(mutex_);
    if (busy_ + queue_.size() >= options_.max_concurrent_calls) {
      return Answer(*connection, epoch, frame.stream_id,
                    MakeStatus(absl::StatusCode::kResourceExhausted, "{} calls are under way already",
                               busy_ + queue_.size()));
    }
    queue_.push_back(std::move(work));
    if (idle_ >= queue_.size()) {
      work_.NotifyOne();
      return;
    }
    const absl::Status status =
        StartThread(options_.thread_stack_bytes, [self = shared_from_this()] { self->Worker(); });
    if (status.ok()) {
      ++idle_;  // it takes one piece of work as its first act
    } else {
      // Those who are busy may be so for hours (Wait): it would stay queued, and nobody would know.
      queue_.pop_back();
      Answer(*connection, epoch, frame.stream_id, status);
    }
  }

  void Worker() {
    mutex_.Lock();
    for (;;) {
      // After a burst a thread stays a while: to start one costs as much as a whole call.
      const auto until = steady_clock::now() + kLinger;
      while (queue_.empty() && !stopping_) {
        if (idle_ <= options_.idle_threads) {
          work_.Wait(mutex_);
        } else if (!work_.WaitUntil(mutex_, until) && queue_.empty()) {
          break;
        }
      }
      if (queue_.empty()) break;
      --idle_;
      ++busy_;
      Work work = std::move(queue_.front());
      queue_.pop_front();
      mutex_.Unlock();
      std::function<void()> after_answer;
      Answer(*work.connection, work.epoch, work.stream_id, Run(work, after_answer));
      if (after_answer) {
        WaitTaken(*work.connection);
        after_answer();
      }
      work = Work();
      mutex_.Lock();
      --busy_;
      ++idle_;
      state_.NotifyAll();
    }
    --idle_;
    mutex_.Unlock();
  }

  absl::StatusOr<std::string> Run(const Work& work, std::function<void()>& after_answer) {
    const Request& request = work.request;
    const auto service = handlers_.find(request.service());
    if (service == handlers_.end()) {
      return MakeStatus(absl::StatusCode::kUnimplemented, "service {} is not served here", request.service());
    }
    const auto method = service->second.find(request.method());
    if (method == service->second.end()) {
      return MakeStatus(absl::StatusCode::kUnimplemented, "{} has no method {}", request.service(),
                        request.method());
    }
    CallContext context;
    context.service = request.service();
    context.method = request.method();
    context.peer_pid = work.connection->peer_pid;
    context.after_answer = &after_answer;
    context.gone = work.connection->gone.get_token();
    if (request.timeout_nano() > 0) {
      context.deadline = steady_clock::now() + std::chrono::nanoseconds(request.timeout_nano());
    }
    for (const KeyValue& pair : request.metadata()) {
      if (pair.key() == "containerd-namespace-ttrpc") context.ns = pair.value();
    }
    return method->second(context, request.payload());
  }

  void Answer(Connection& connection, uint64_t epoch, uint32_t stream_id,
              const absl::StatusOr<std::string>& result) {
    Response response;
    if (result.ok()) {
      response.set_payload(*result);
    } else {
      response.mutable_status()->set_code(static_cast<int>(result.status().code()));
      // It may have others' words in it, and a protobuf string is valid UTF-8 or cannot be read.
      response.mutable_status()->set_message(Printable(Message(result.status()), kMaxErrorBytes));
    }
    Frame frame;
    frame.stream_id = stream_id;
    frame.type = FrameType::kResponse;
    response.SerializeToString(&frame.payload);
    const absl::StatusOr<std::string> bytes = EncodeFrame(frame);
    if (!bytes.ok()) return Answer(connection, epoch, stream_id, bytes.status());
    {
      MutexLock lock(connection.mutex);
      if (connection.closed || connection.epoch != epoch) return;
      if (connection.out.size() + bytes->size() > kMaxQueuedBytes) {
        connection.closed = true;
        shutdown(connection.fd.get(), SHUT_RDWR);
        return;
      }
      connection.out += *bytes;
    }
    Flush(connection);
  }

  // A virtio port can be written again once the host has taken what it was given, a socket at once.
  void WaitTaken(Connection& connection) {
    const auto end = steady_clock::now() + kTakenTimeout;
    for (bool written = false; !written;) {
      {
        MutexLock lock(connection.mutex);
        if (connection.closed) return;
        written = connection.out.empty();
      }
      pollfd writable{connection.fd.get(), POLLOUT, 0};
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - steady_clock::now());
      if (left.count() <= 0 || poll(&writable, 1, static_cast<int>(left.count())) <= 0) return;
      if (!written) Flush(connection);
    }
  }

  // Writes what the peer takes now; asks epoll for the rest. False when the connection is broken.
  bool Flush(Connection& connection) {
    MutexLock lock(connection.mutex);
    size_t sent = 0;
    bool alive = true;
    while (sent < connection.out.size()) {
      const ssize_t n =
          WriteQuietly(connection.fd.get(), connection.out.data() + sent, connection.out.size() - sent);
      if (n > 0) {
        sent += static_cast<size_t>(n);
      } else if (n < 0 && errno == EINTR) {
        continue;
      } else if (n == 0 || errno == EAGAIN) {
        break;
      } else {
        alive = connection.persistent;
        sent = connection.out.size();
      }
    }
    connection.out.erase(0, sent);
    const bool want_write = !connection.out.empty();
    if (want_write != connection.want_write) {
      connection.want_write = want_write;
      epoll_event event{};
      event.events = EPOLLIN | (want_write ? static_cast<uint32_t>(EPOLLOUT) : 0U);
      event.data.fd = connection.fd.get();
      epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, connection.fd.get(), &event);
    }
    return alive;
  }

  void Drop(const std::shared_ptr<Connection>& connection) {
    Unwatch(connection->fd.get());
    {
      MutexLock lock(connection->mutex);
      connection->closed = true;
      shutdown(connection->fd.get(), SHUT_RDWR);
    }
    {
      MutexLock lock(mutex_);
      connections_.erase(connection->fd.get());
    }
    connection->gone.request_stop();
  }

  const ServerOptions options_;
  const UniqueFd epoll_, wake_;
  absl::Status wake_status_;                                        // fixed before serving
  std::map<std::string, std::map<std::string, Handler>> handlers_;  // fixed before serving

  Mutex mutex_;  // before a connection's mutex
  CondVar work_, state_;
  bool stopping_ GUARDED_BY(mutex_) = false;
  bool loop_running_ GUARDED_BY(mutex_) = false;
  size_t busy_ GUARDED_BY(mutex_) = 0;
  size_t idle_ GUARDED_BY(mutex_) = 0;  // threads that wait for work or are about to
  std::deque<Work> queue_ GUARDED_BY(mutex_);
  std::map<int, Listener> listeners_ GUARDED_BY(mutex_);
  Doorkeeper keeper_ GUARDED_BY(mutex_);
  std::map<int, std::shared_ptr<Connection>> connections_ GUARDED_BY(mutex_);
};

Server::Server(ServerOptions options) : impl_(std::make_shared<Impl>(options)) {}

Server::~Server() {
  Stop();
  Wait();
}

void Server::Register(std::string service, std::string method, Handler handler) {
  impl_->Register(std::move(service), std::move(method), std::move(handler));
}

absl::Status Server::Listen(const std::string& path) {
  ASSIGN_OR_RETURN(UniqueFd listener, ListenUnix(path));
  return ListenFd(std::move(listener));
}

absl::Status Server::ListenFd(UniqueFd listener) { return impl_->AddListener(std::move(listener)); }
absl::Status Server::ServeFd(UniqueFd stream, bool persistent) {
  return impl_->AddStream(std::move(stream), persistent);
}
void Server::Stop() { impl_->Stop(); }
void Server::Wait() { impl_->Wait(); }

}  // namespace lamina::ttrpc
