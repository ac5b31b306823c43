#include "guest/protocol/stdio_mux.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "base/ttrpc/thread.h"

namespace lamina::guest {
namespace {

enum Kind : uint8_t { kData = 1, kCredit = 2, kEof = 3, kReset = 4 };

constexpr size_t kHeaderBytes = 12;
// Nothing is added to what waits for the channel while it is more than this: what is due stays where it is.
constexpr size_t kOutLimitBytes = 256 * 1024;
constexpr size_t kIdleBytes = 4096;  // an empty buffer that is larger is given back
constexpr size_t kMaxStreams = 4096;
constexpr size_t kMaxEarlyStreams = 1024;  // streams that the peer writes to before they are attached here
constexpr size_t kMaxClosed = 1024;        // closed streams that are remembered
constexpr int kPortPollMs = 20;
constexpr size_t kThreadStackBytes = 64 * 1024;

void PutU32(std::string& out, uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<char>(value >> shift));
}

uint32_t GetU32(const char* bytes) {
  uint32_t value = 0;
  for (int i = 3; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

void SetNonBlocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

struct Stream {
  // Our direction: source -> peer.
  UniqueFd source;
  bool has_source = false;
  bool source_ended = false;
  bool refused = false;               // the peer wants no more: what it still grants is late
  size_t credit = kStdioWindowBytes;  // what the peer still lets us send
  std::function<void()> source_done;
  // The peer's direction: peer -> sink.
  UniqueFd sink;
  bool has_sink = false;
  bool peer_ended = false;
  bool discard = false;  // the sink broke: what still comes is dropped
  // What the peer is still to be told: a state and no queue, so that a peer that does not read costs nothing.
  bool end_due = false, reset_due = false;
  std::string received;
  size_t window = kStdioWindowBytes;  // what the peer may still send
  size_t ungranted = 0;               // written to the sink, not yet given back as credit
  bool ended_before = false;  // a peer that is gone ended its direction: what the next one sends is dropped
  size_t stale = 0;           // of `received`: from a peer that is gone, so no credit to give back
  std::function<void()> sink_done;

  bool credit_due() const {
    return ungranted > 0 && (ungranted >= kStdioWindowBytes / 4 || received.empty());
  }
};

// An empty buffer keeps little.
void ShrinkIdle(std::string& buffer) {
  if (buffer.empty() && buffer.capacity() > kIdleBytes) std::string().swap(buffer);
}

}  // namespace

class StdioMux::Impl : public std::enable_shared_from_this<StdioMux::Impl> {
 public:
  Impl(UniqueFd channel, StdioMuxOptions options)
      : channel_(std::move(channel)), options_(options), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    SetNonBlocking(channel_.get());
  }

  absl::Status Start() {
    MutexLock lock(mutex_);
    running_ = true;
    no_peer_ = options_.persistent && !PeerIsThere();
    absl::Status status =
        ttrpc::StartThread(kThreadStackBytes, [self = shared_from_this()] { self->Loop(); });
    if (!status.ok()) {
      running_ = false;
      status_ = status;
    }
    return status;
  }

  void Stop() {
    MutexLock lock(mutex_);
    stopping_ = true;
    Wake();
    while (running_) ended_.Wait(mutex_);
  }

  absl::Status AttachSource(uint32_t id, UniqueFd source, std::function<void()> done) {
    if (id == 0) return absl::InvalidArgumentError("stdio: stream id 0");
    SetNonBlocking(source.get());
    MutexLock lock(mutex_);
    if (!status_.ok()) return status_;
    if (streams_.size() >= kMaxStreams) return absl::ResourceExhaustedError("stdio: too many streams");
    Stream& stream = streams_[id];
    if (stream.has_source) return InvalidArgument("stdio: stream {} has a source already", id);
    NoLongerEarly(id, stream);
    stream.has_source = true;
    stream.source = std::move(source);
    stream.source_done = std::move(done);
    Wake();
    return absl::OkStatus();
  }

  absl::Status AttachSink(uint32_t id, UniqueFd sink, std::function<void()> done) {
    if (id == 0) return absl::InvalidArgumentError("stdio: stream id 0");
    SetNonBlocking(sink.get());
    MutexLock lock(mutex_);
    if (!status_.ok()) return status_;
    if (streams_.size() >= kMaxStreams) return absl::ResourceExhaustedError("stdio: too many streams");
    Stream& stream = streams_[id];
    if (stream.has_sink) return InvalidArgument("stdio: stream {} has a sink already", id);
    NoLongerEarly(id, stream);
    stream.has_sink = true;
    stream.sink = std::move(sink);
    stream.sink_done = std::move(done);
    Wake();
    return absl::OkStatus();
  }

  void Close(uint32_t id) {
    MutexLock lock(mutex_);
    const auto it = streams_.find(id);
    if (it == streams_.end()) return;
    NoLongerEarly(id, it->second);
    streams_.erase(it);
    // Ids are counted upwards: the lowest are the oldest, and the least likely to be heard of again.
    if (options_.early_bytes > 0 && closed_.insert(id).second && closed_.size() > kMaxClosed)
      closed_.erase(closed_.begin());
    if (resets_due_.insert(id).second && resets_due_.size() > kMaxClosed)
      resets_due_.erase(resets_due_.begin());
    Wake();
  }

  absl::Status status() {
    MutexLock lock(mutex_);
    return status_;
  }

  size_t buffered_bytes() {
    // What a node of a map or set takes beside its value.
    constexpr size_t kNode = 48;
    MutexLock lock(mutex_);
    size_t bytes = in_.capacity() + out_.capacity() +
                   (early_.size() + closed_.size() + resets_due_.size()) * (kNode + sizeof(uint32_t));
    for (const auto& [id, stream] : streams_) bytes += kNode + sizeof(Stream) + stream.received.capacity();
    return bytes;
  }

 private:
  using Callbacks = std::vector<std::function<void()>>;

  void Wake() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(wake_.get(), &one, sizeof one);
  }

  void Append(uint32_t id, Kind kind, uint32_t length) REQUIRES(mutex_) {
    PutU32(out_, id);
    out_.push_back(static_cast<char>(kind));
    out_.append(3, '\0');
    PutU32(out_, length);
  }

  void Loop() {
    Callbacks callbacks;
    for (;;) {
      std::vector<pollfd> fds;
      std::vector<std::pair<uint32_t, bool>> owners;  // {stream, is source} for fds[2…]
      int timeout = -1;
      {
        MutexLock lock(mutex_);
        if (stopping_ || !status_.ok()) break;
        short channel_events = no_peer_ ? 0 : POLLIN;
        if ((!out_.empty() || untold_) && !no_peer_) channel_events |= POLLOUT;
        fds.push_back({wake_.get(), POLLIN, 0});
        fds.push_back({no_peer_ ? -1 : channel_.get(), channel_events, 0});
        if (no_peer_) timeout = kPortPollMs;
        for (auto& [id, stream] : streams_) {
          if (stream.source && stream.credit > 0 && HasRoom()) {
            fds.push_back({stream.source.get(), POLLIN, 0});
            owners.emplace_back(id, true);
          }
          if (stream.sink && !stream.received.empty()) {
            fds.push_back({stream.sink.get(), POLLOUT, 0});
            owners.emplace_back(id, false);
          }
        }
      }
      if (poll(fds.data(), fds.size(), timeout) < 0 && errno != EINTR) break;
      if (fds[0].revents != 0) {
        uint64_t value;
        [[maybe_unused]] const ssize_t n = read(wake_.get(), &value, sizeof value);
      }
      {
        MutexLock lock(mutex_);
        if (no_peer_) {
          no_peer_ = !PeerIsThere();
        } else if (fds[1].revents != 0) {
          Receive();
        }
        const size_t count = owners.size();
        // Before the sources are read, which would leave no room for it.
        TellWhatIsDue();
        // Another stream goes first each time, so that a flood from one cannot take all of the channel.
        for (size_t i = 0; i < count && status_.ok(); ++i) {
          const size_t at = (i + turn_) % count;
          if (fds[at + 2].revents == 0) continue;
          const auto it = streams_.find(owners[at].first);
          if (it == streams_.end()) continue;
          if (owners[at].second) {
            ReadSource(it->first, it->second);
          } else {
            WriteSink(it->second);
          }
        }
        ++turn_;
        TellWhatIsDue();
        for (auto it = streams_.begin(); it != streams_.end();) it = Settle(it, callbacks);
        FlushChannel();
      }
      for (auto& callback : callbacks) callback();
      callbacks.clear();
    }
    {
      MutexLock lock(mutex_);
      if (status_.ok()) status_ = absl::CancelledError("stdio: closed");
      for (auto& [id, stream] : streams_) {
        if (stream.source_done) callbacks.push_back(std::move(stream.source_done));
        if (stream.sink_done) callbacks.push_back(std::move(stream.sink_done));
      }
      streams_.clear();
      std::string().swap(in_);
      std::string().swap(out_);
    }
    for (auto& callback : callbacks) callback();
    MutexLock lock(mutex_);
    running_ = false;
    ended_.NotifyAll();
  }

  void ReadSource(uint32_t id, Stream& stream) REQUIRES(mutex_) {
    if (!stream.source || stream.credit == 0 || !HasRoom()) return;
    const size_t want = std::min({stream.credit, kStdioMaxFrameBytes, kOutLimitBytes});
    const size_t start = out_.size();
    Append(id, kData, 0);
    const size_t at = out_.size();
    out_.resize(at + want);
    const ssize_t n = read(stream.source.get(), out_.data() + at, want);
    if (n > 0) {
      out_.resize(at + static_cast<size_t>(n));
      std::string length;
      PutU32(length, static_cast<uint32_t>(n));
      out_.replace(at - 4, 4, length);
      stream.credit -= static_cast<size_t>(n);
      return;
    }
    const int error = n < 0 ? errno : 0;
    out_.resize(start);
    if (error == EAGAIN || error == EINTR) return;
    // End of file; EIO is how a pty says it.
    stream.source.reset();
    stream.source_ended = stream.end_due = true;
  }

  void WriteSink(Stream& stream) REQUIRES(mutex_) {
    if (!stream.sink || stream.received.empty()) return;
    const ssize_t n = write(stream.sink.get(), stream.received.data(), stream.received.size());
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n < 0) {
      stream.sink.reset();
      stream.discard = true;
      stream.ungranted += stream.received.size() - stream.stale;
      stream.stale = 0;
      stream.received.clear();
      stream.reset_due = true;
    } else {
      const size_t stale = std::min(stream.stale, static_cast<size_t>(n));
      stream.received.erase(0, static_cast<size_t>(n));
      stream.stale -= stale;
      stream.ungranted += static_cast<size_t>(n) - stale;
    }
    ShrinkIdle(stream.received);
  }

  bool HasRoom() const REQUIRES(mutex_) { return out_.size() < kOutLimitBytes; }

  // Puts into `out_` what the peer is to be told, as far as there is room. A credit counts from then on: a
  // peer that sends more than it has been given breaks the rules, whether or not it reads.
  void TellWhatIsDue() REQUIRES(mutex_) {
    for (auto& [id, stream] : streams_) {
      if (!HasRoom()) break;
      if (stream.credit_due()) {
        Append(id, kCredit, static_cast<uint32_t>(stream.ungranted));
        stream.window += stream.ungranted;
        stream.ungranted = 0;
      }
      if (stream.end_due) Append(id, kEof, 0);
      if (stream.reset_due) Append(id, kReset, 0);
      stream.end_due = stream.reset_due = false;
    }
    while (!resets_due_.empty() && HasRoom()) {
      Append(*resets_due_.begin(), kReset, 0);
      resets_due_.erase(resets_due_.begin());
    }
    untold_ = !HasRoom();  // there may be more
  }

  // Runs what has become due for one stream, and forgets it when both directions are over.
  std::map<uint32_t, Stream>::iterator Settle(std::map<uint32_t, Stream>::iterator it, Callbacks& callbacks)
      REQUIRES(mutex_) {
    Stream& stream = it->second;
    if (stream.has_source && stream.source_ended && stream.source_done && !stream.end_due &&
        stream.credit >= kStdioWindowBytes) {
      callbacks.push_back(std::move(stream.source_done));
      stream.source_done = nullptr;
    }
    if (stream.has_sink && (stream.discard || (stream.peer_ended && stream.received.empty()))) {
      stream.sink.reset();
      if (stream.sink_done) callbacks.push_back(std::move(stream.sink_done));
      stream.sink_done = nullptr;
    }
    const bool source_over = !stream.has_source || (stream.source_ended && !stream.source_done &&
                                                    stream.credit >= kStdioWindowBytes);
    const bool sink_over = !stream.has_sink || (stream.peer_ended && !stream.sink);
    const bool attached = stream.has_source || stream.has_sink;
    const bool told = stream.ungranted == 0 && !stream.end_due && !stream.reset_due;
    if (attached && source_over && sink_over && stream.received.empty() && told) return streams_.erase(it);
    return std::next(it);
  }

  void Fail(const std::string& why) REQUIRES(mutex_) {
    status_ = MakeStatus(absl::StatusCode::kUnavailable, "stdio: {}", why);
  }

  // Read only then: what a port holds before its kernel has heard of the host would be lost with the "peer"
  // that the next read does not find.
  bool PeerIsThere() const {
    pollfd port{channel_.get(), POLLIN, 0};
    return poll(&port, 1, 0) < 0 || (port.revents & POLLHUP) == 0;
  }

  // The next peer begins anew: with whole frames, full windows, and without what was on its way to the last
  // one. What that one sent is still written to its sinks; ends that it may not have heard of are told again.
  void PeerLost() REQUIRES(mutex_) {
    no_peer_ = true;
    in_.clear();
    out_.clear();
    for (const uint32_t id : early_) streams_.erase(id);
    early_.clear();
    early_held_ = 0;
    resets_due_.clear();
    for (auto& [id, stream] : streams_) {
      stream.credit = stream.window = kStdioWindowBytes;
      stream.ungranted = 0;
      stream.stale = stream.received.size();
      stream.ended_before = stream.peer_ended;
      stream.end_due = stream.has_source && stream.source_ended;
      stream.reset_due = stream.discard;
    }
  }

  void Receive() REQUIRES(mutex_) {
    char buffer[32 * 1024];
    const ssize_t n = read(channel_.get(), buffer, sizeof buffer);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
      if (!options_.persistent) return Fail(n == 0 ? "the channel ended" : strerror(errno));
      PeerLost();
      return;
    }
    in_.append(buffer, static_cast<size_t>(n));
    size_t at = 0;
    while (status_.ok() && in_.size() - at >= kHeaderBytes) {
      const uint32_t id = GetU32(in_.data() + at);
      const auto kind = static_cast<uint8_t>(in_[at + 4]);
      const uint32_t length = GetU32(in_.data() + at + 8);
      if (id == 0 || kind < kData || kind > kReset || (kind == kData && length > kStdioMaxFrameBytes)) {
        return Fail(
            fmt::format("the peer sent a bad frame (stream {}, kind {}, length {})", id, kind, length));
      }
      const size_t payload = kind == kData ? length : 0;
      if (in_.size() - at < kHeaderBytes + payload) break;
      Handle(id, kind, length, std::string_view(in_).substr(at + kHeaderBytes, payload));
      at += kHeaderBytes + payload;
    }
    in_.erase(0, at);
    ShrinkIdle(in_);
  }

  // What is early is counted in all: the peer alone decides how many streams it writes to.
  void NoLongerEarly(uint32_t id, const Stream& stream) REQUIRES(mutex_) {
    if (early_.erase(id) > 0) early_held_ -= stream.received.size();
  }

  void Handle(uint32_t id, uint8_t kind, uint32_t length, std::string_view payload) REQUIRES(mutex_) {
    auto it = streams_.find(id);
    if (it == streams_.end()) {
      if (options_.early_bytes == 0 || closed_.count(id) != 0 || (kind != kData && kind != kEof)) return;
      if (early_.size() >= kMaxEarlyStreams) return Fail("the peer writes to too many unknown streams");
      early_.insert(id);
      it = streams_.try_emplace(id).first;
    }
    Stream& stream = it->second;
    switch (kind) {
      case kData:
        if (payload.size() > stream.window || (stream.peer_ended && !stream.ended_before)) {
          return Fail(fmt::format("the peer sent more than it may on stream {}", id));
        }
        stream.window -= payload.size();
        if (!stream.has_sink && options_.early_bytes == 0) return;
        if (stream.discard || stream.ended_before) {
          stream.ungranted += payload.size();
          return;
        }
        if (early_.count(id) > 0 && (early_held_ += payload.size()) > options_.early_bytes)
          return Fail("the peer writes too much to unknown streams");
        stream.received += payload;
        if (stream.sink) WriteSink(stream);
        return;
      case kCredit:
        if (stream.refused) return;
        if (length > kStdioWindowBytes - stream.credit) {
          return Fail(fmt::format("the peer granted {} bytes too many on stream {}", length, id));
        }
        stream.credit += length;
        return;
      case kEof:
        stream.peer_ended = true;
        return;
      default:  // kReset: nobody reads our direction any more
        if (stream.has_source && !stream.source_ended) {
          stream.source.reset();
          stream.source_ended = stream.end_due = true;
        }
        stream.refused = true;
        stream.credit = kStdioWindowBytes;
        return;
    }
  }

  void FlushChannel() REQUIRES(mutex_) {
    size_t sent = 0;
    while (sent < out_.size() && !no_peer_) {
      const ssize_t n = write(channel_.get(), out_.data() + sent, out_.size() - sent);
      if (n > 0) {
        sent += static_cast<size_t>(n);
        continue;
      }
      if (n < 0 && errno == EINTR) continue;
      if (n == 0 || errno == EAGAIN) break;
      if (!options_.persistent) return Fail(strerror(errno));
      return PeerLost();
    }
    out_.erase(0, sent);
    if (streams_.empty()) ShrinkIdle(out_);
  }

  const UniqueFd channel_;
  const StdioMuxOptions options_;
  const UniqueFd wake_;
  Mutex mutex_;
  CondVar ended_;
  bool running_ GUARDED_BY(mutex_) = false;
  bool stopping_ GUARDED_BY(mutex_) = false;
  bool no_peer_ GUARDED_BY(mutex_) = false;
  absl::Status status_ GUARDED_BY(mutex_);
  std::map<uint32_t, Stream> streams_ GUARDED_BY(mutex_);
  std::set<uint32_t> early_ GUARDED_BY(mutex_), closed_ GUARDED_BY(mutex_), resets_due_ GUARDED_BY(mutex_);
  size_t early_held_ GUARDED_BY(mutex_) = 0;
  bool untold_ GUARDED_BY(mutex_) = false;
  std::string in_ GUARDED_BY(mutex_), out_ GUARDED_BY(mutex_);
  size_t turn_ = 0;
};

StdioMux::StdioMux(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
StdioMux::~StdioMux() { impl_->Stop(); }

std::unique_ptr<StdioMux> StdioMux::Create(UniqueFd channel, StdioMuxOptions options) {
  signal(SIGPIPE, SIG_IGN);
  auto impl = std::make_shared<Impl>(std::move(channel), options);
  impl->Start().IgnoreError();
  return std::unique_ptr<StdioMux>(new StdioMux(std::move(impl)));
}

absl::Status StdioMux::AttachSource(uint32_t stream_id, UniqueFd source, std::function<void()> done) {
  return impl_->AttachSource(stream_id, std::move(source), std::move(done));
}
absl::Status StdioMux::AttachSink(uint32_t stream_id, UniqueFd sink, std::function<void()> done) {
  return impl_->AttachSink(stream_id, std::move(sink), std::move(done));
}
void StdioMux::Close(uint32_t stream_id) { impl_->Close(stream_id); }
absl::Status StdioMux::status() const { return impl_->status(); }
size_t StdioMux::buffered_bytes() const { return impl_->buffered_bytes(); }

}  // namespace lamina::guest
