#include "node/rest_front.h"

#include <algorithm>
#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl/ssl_stream.hpp>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/printable.h"
#include "base/status.h"
#include "base/ttrpc/thread.h"
#include "node/rest_relay.h"

namespace lamina::node {
namespace {

namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::asio::ip::tcp;
using std::chrono::steady_clock;
using TlsStream = beast::ssl_stream<beast::tcp_stream>;

constexpr std::chrono::milliseconds kAcceptPause{100};  // without a free descriptor: how often to try again
constexpr std::chrono::seconds kPatience{1};  // for who is slow to take an answer, when room is short
constexpr std::chrono::minutes kComplaintPause{1};

RestAnswer Refusal(int status, const std::string& why) {
  return {status, "application/json", nlohmann::json({{"error", Printable(why, 512)}}).dump() + "\n"};
}

int HttpStatus(const absl::Status& status) {
  if (status.code() == absl::StatusCode::kDeadlineExceeded) return 504;
  return status.code() == absl::StatusCode::kResourceExhausted ? 503 : 502;
}

}  // namespace

// All but the constructor, the destructor and Serve runs on the front's thread.
class RestFront::Impl {
 public:
  Impl(Options options, RestCredentials credentials)
      : options_(std::move(options)), credentials_(std::move(credentials)), acceptor_(io_), pause_(io_) {}
  ~Impl() {
    io_.stop();
    if (thread_.joinable()) thread_.join();
    // Before io_, in which their sockets are.
    sessions_.clear();
  }

  absl::Status Bind();
  absl::Status Serve(const InnerNetwork& network, uint16_t inner_port, std::string secret);
  tcp::endpoint endpoint() const { return endpoint_; }

 private:
  enum class Phase { kHead, kAnswer, kWrite, kLinger };

  // A client's connection. It keeps itself alive by what it waits for, and is closed when it is dropped.
  class Session : public std::enable_shared_from_this<Session> {
   public:
    virtual ~Session() = default;
    virtual void Run() = 0;
    virtual void Close() = 0;
    Phase phase() const { return phase_; }
    steady_clock::time_point since() const { return since_; }

   protected:
    void Enter(Phase phase) {
      phase_ = phase;
      since_ = steady_clock::now();
    }

   private:
    Phase phase_ = Phase::kHead;
    steady_clock::time_point since_ = steady_clock::now();
  };
  template <typename Stream>
  class SessionOn;

  void Accept();
  void Take(tcp::socket socket);
  bool MakeRoom();
  void Refresh();
  void Drop(Session& session);
  void Complain(const std::string& what);
  bool IsOpen(std::string_view path) const {
    return std::find(options_.open_paths.begin(), options_.open_paths.end(), path) !=
           options_.open_paths.end();
  }
  // Counts the answer to those that clients have yet to take, or replaces it by a refusal.
  void Charge(RestAnswer& answer);
  void Discharge(size_t bytes) { untaken_bytes_ -= bytes; }

  boost::asio::io_context io_{1};
  const Options options_;
  RestCredentials credentials_;
  tcp::acceptor acceptor_;
  tcp::endpoint endpoint_;
  boost::asio::steady_timer pause_;
  std::optional<RestRelay> relay_;
  std::map<Session*, std::shared_ptr<Session>> sessions_;
  size_t untaken_bytes_ = 0;
  steady_clock::time_point next_complaint_{};
  std::thread thread_;
};

template <typename Stream>
class RestFront::Impl::SessionOn : public Session {
 public:
  // `tls`: what the stream was made with, or null.
  template <typename... Args>
  SessionOn(Impl& front, std::shared_ptr<boost::asio::ssl::context> tls, Args&&... args)
      : front_(front),
        limits_(front.options_.limits),
        tls_(std::move(tls)),
        stream_(std::forward<Args>(args)...),
        buffer_(limits_.head_bytes + 1) {}

  void Run() override {
    Enter(Phase::kHead);
    lowest().expires_after(limits_.head);
    if constexpr (std::is_same_v<Stream, TlsStream>) {
      stream_.async_handshake(boost::asio::ssl::stream_base::server,
                              [self = Self()](beast::error_code error) {
                                if (error) return self->End();
                                self->ReadHead();
                              });
    } else {
      ReadHead();
    }
  }

  void Close() override { lowest().close(); }

 private:
  std::shared_ptr<SessionOn> Self() { return std::static_pointer_cast<SessionOn>(shared_from_this()); }
  beast::tcp_stream& lowest() { return beast::get_lowest_layer(stream_); }
  void End() { front_.Drop(*this); }

  void AwaitNext() {
    Enter(Phase::kHead);
    if (buffer_.size() > 0) {
      lowest().expires_after(limits_.head);
      return ReadHead();
    }
    lowest().expires_after(limits_.idle);
    stream_.async_read_some(buffer_.prepare(1024), [self = Self()](beast::error_code error, size_t count) {
      if (error) return self->End();
      self->buffer_.commit(count);
      self->lowest().expires_after(self->limits_.head);
      self->ReadHead();
    });
  }

  void ReadHead() {
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(limits_.head_bytes));
    parser_->body_limit(std::numeric_limits<uint64_t>::max());  // judged by OnHead
    http::async_read_header(stream_, buffer_, *parser_,
                            [self = Self()](beast::error_code error, size_t) { self->OnHead(error); });
  }

  void OnHead(beast::error_code error) {
    if (error == http::error::header_limit || error == http::error::buffer_overflow)
      return Refuse(431, fmt::format("the head of a request is at most {} bytes", limits_.head_bytes));
    const bool gone = error == http::error::end_of_stream || error == http::error::partial_message;
    if (error && !gone && error.category() == make_error_code(http::error::bad_version).category())
      return Refuse(400, "this is no HTTP request");
    if (error) return End();
    const auto& request = parser_->get();
    if (request.method() != http::verb::get && request.method() != http::verb::head)
      return Refuse(405, "this interface is read-only: use GET");
    if (std::distance(request.begin(), request.end()) > static_cast<std::ptrdiff_t>(limits_.fields))
      return Refuse(431, fmt::format("a request has at most {} fields", limits_.fields));
    if (parser_->chunked() || parser_->content_length().value_or(0) > 0)
      return Refuse(413, "a request has no body");
    std::string target(request.target());
    const std::string path = target.substr(0, target.find('?'));
    const beast::string_view said = request[http::field::authorization];
    front_.Refresh();
    if (front_.IsOpen(path)) {
      target = path;
    } else if (!front_.credentials_.Admits({said.data(), said.size()})) {
      return Answer(Refusal(401, "this path is for those who have laminad's token"));
    }
    Enter(Phase::kAnswer);
    lowest().expires_never();
    front_.relay_->Get(std::move(target), [self = Self()](absl::StatusOr<RestAnswer> answer) {
      if (answer.ok()) return self->Answer(std::move(*answer));
      self->front_.Complain(Message(answer.status()));
      self->Answer(Refusal(HttpStatus(answer.status()), Message(answer.status())));
    });
  }

  // Answers, and hears no more of this client.
  void Refuse(int status, const std::string& why) {
    refused_ = true;
    Answer(Refusal(status, why));
  }

  void Answer(RestAnswer answer) {
    if (!lowest().socket().is_open()) return End();
    front_.Charge(answer);
    charged_ = answer.body.size();
    const auto& request = parser_->get();
    response_ = {};
    response_.result(static_cast<unsigned>(answer.status));
    response_.version(11);
    response_.set(http::field::content_type, answer.content_type);
    if (answer.status == 405) response_.set(http::field::allow, "GET, HEAD");
    if (answer.status == 401) response_.set(http::field::www_authenticate, "Bearer");
    if (answer.status == 503) response_.set(http::field::retry_after, "1");
    response_.keep_alive(!refused_ && request.keep_alive());
    response_.body() = std::move(answer.body);
    response_.prepare_payload();
    serializer_.emplace(response_);
    Enter(Phase::kWrite);
    lowest().expires_after(limits_.write);
    const auto written = [self = Self()](beast::error_code error, size_t) { self->OnWritten(error); };
    if (request.method() == http::verb::head) {
      http::async_write_header(stream_, *serializer_, written);
    } else {
      http::async_write(stream_, *serializer_, written);
    }
  }

  void OnWritten(beast::error_code error) {
    front_.Discharge(charged_);
    const bool again = !error && response_.keep_alive();
    serializer_.reset();
    response_ = {};
    if (error) return End();
    if (again) return AwaitNext();
    Enter(Phase::kLinger);
    lowest().expires_after(limits_.linger);
    if constexpr (std::is_same_v<Stream, TlsStream>) {
      // What the client still sends is an error to it.
      stream_.async_shutdown([self = Self()](beast::error_code) { self->Linger(); });
    } else {
      Linger();
    }
  }

  // A connection that is closed with something unread is reset, and the client may never see its answer.
  void Linger() {
    beast::error_code error;
    lowest().socket().shutdown(tcp::socket::shutdown_send, error);
    if (error) return End();
    ReadAway();
  }

  void ReadAway() {
    lowest().async_read_some(boost::asio::buffer(thrown_away_),
                             [self = Self()](beast::error_code error, size_t) {
                               // The stream's own deadline never comes while there is always something to
                               // read.
                               const bool late = steady_clock::now() - self->since() > self->limits_.linger;
                               if (error || late) return self->End();
                               self->ReadAway();
                             });
  }

  Impl& front_;
  const RestLimits& limits_;
  const std::shared_ptr<boost::asio::ssl::context> tls_;
  Stream stream_;
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::empty_body>> parser_;
  http::response<http::string_body> response_;
  std::optional<http::response_serializer<http::string_body>> serializer_;
  bool refused_ = false;
  size_t charged_ = 0;
  std::array<char, 4096> thrown_away_;
};

absl::Status RestFront::Impl::Bind() {
  const std::string& address = options_.address;
  const size_t colon = address.rfind(':');
  beast::error_code error;
  if (colon == std::string::npos) return InvalidArgument("REST at {}: not HOST:PORT", address);
  tcp::resolver resolver(io_);
  const auto found = resolver.resolve(address.substr(0, colon), address.substr(colon + 1),
                                      tcp::resolver::passive | tcp::resolver::numeric_service, error);
  if (!error) {
    endpoint_ = found.begin()->endpoint();
    acceptor_.open(endpoint_.protocol(), error);
  }
  if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor_.bind(endpoint_, error);
  if (!error) acceptor_.listen(tcp::acceptor::max_listen_connections, error);
  if (!error) endpoint_ = acceptor_.local_endpoint(error);
  if (!error) return absl::OkStatus();
  return MakeStatus(absl::StatusCode::kUnavailable, "REST at {}: {}", address, error.message());
}

absl::Status RestFront::Impl::Serve(const InnerNetwork& network, uint16_t inner_port, std::string secret) {
  relay_.emplace(io_, inner_port, std::move(secret), options_.limits);
  Accept();
  absl::StatusOr<std::thread> thread = ttrpc::NewThread([this, &network] {
    // The listening socket stays in the network that it was made in; those to the inner listener are made
    // here.
    if (const absl::Status entered = network.Enter(); !entered.ok())
      LogError("REST cannot reach its inner listener: {}", Message(entered));
    io_.run();
  });
  if (!thread.ok()) return Annotate(thread.status(), "REST at " + options_.address);
  thread_ = std::move(*thread);
  return absl::OkStatus();
}

void RestFront::Impl::Accept() {
  acceptor_.async_accept([this](beast::error_code error, tcp::socket socket) {
    if (!error) {
      Take(std::move(socket));
      return Accept();
    }
    if (error == boost::asio::error::connection_aborted) return Accept();
    Complain("accept a connection: " + error.message());
    pause_.expires_after(kAcceptPause);
    pause_.async_wait([this](beast::error_code) { Accept(); });
  });
}

void RestFront::Impl::Take(tcp::socket socket) {
  if (sessions_.size() >= options_.limits.connections && !MakeRoom()) return;
  Refresh();
  std::shared_ptr<Session> session;
  if (const auto& tls = credentials_.tls(); tls != nullptr) {
    session = std::make_shared<SessionOn<TlsStream>>(*this, tls, beast::tcp_stream(std::move(socket)), *tls);
  } else {
    session = std::make_shared<SessionOn<beast::tcp_stream>>(*this, nullptr, std::move(socket));
  }
  sessions_.emplace(session.get(), session);
  session->Run();
}

// Those who come with a request are served at once; those who only hold a connection make room for them.
bool RestFront::Impl::MakeRoom() {
  const auto now = steady_clock::now();
  Session* idlest = nullptr;
  Session* slowest = nullptr;
  for (const auto& [session, owner] : sessions_) {
    const bool waits = session->phase() == Phase::kHead || session->phase() == Phase::kLinger;
    if (waits && (idlest == nullptr || session->since() < idlest->since())) idlest = session;
    const bool slow = session->phase() == Phase::kWrite && now - session->since() > kPatience;
    if (slow && (slowest == nullptr || session->since() < slowest->since())) slowest = session;
  }
  Session* const victim = idlest != nullptr ? idlest : slowest;
  Complain(fmt::format("more than {} connections: {}", options_.limits.connections,
                       victim != nullptr ? "the one that has been waited for longest is closed"
                                         : "all are being answered; the newest is closed"));
  if (victim == nullptr) return false;
  Drop(*victim);
  return true;
}

void RestFront::Impl::Refresh() {
  if (const absl::Status status = credentials_.Refresh(); !status.ok())
    LogError("REST: {}; what was there before goes on", Message(status));
}

void RestFront::Impl::Drop(Session& session) {
  session.Close();
  sessions_.erase(&session);
}

void RestFront::Impl::Complain(const std::string& what) {
  const auto now = steady_clock::now();
  if (now < next_complaint_) return;
  next_complaint_ = now + kComplaintPause;
  LogWarning("REST: {} (said at most once a minute)", what);
}

void RestFront::Impl::Charge(RestAnswer& answer) {
  if (answer.body.size() > options_.limits.small_bytes &&
      untaken_bytes_ + answer.body.size() > options_.limits.untaken_bytes) {
    answer = Refusal(503, "too many answers wait to be taken by those who asked; ask again");
  }
  untaken_bytes_ += answer.body.size();
}

RestFront::RestFront(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RestFront::~RestFront() = default;

absl::StatusOr<std::unique_ptr<RestFront>> RestFront::Bind(Options options, RestCredentials credentials) {
  auto impl = std::make_unique<Impl>(std::move(options), std::move(credentials));
  RETURN_IF_ERROR(impl->Bind());
  return std::unique_ptr<RestFront>(new RestFront(std::move(impl)));
}

absl::Status RestFront::Serve(const InnerNetwork& network, uint16_t inner_port, std::string secret) {
  return impl_->Serve(network, inner_port, std::move(secret));
}

uint16_t RestFront::port() const { return impl_->endpoint().port(); }
bool RestFront::loopback() const { return impl_->endpoint().address().is_loopback(); }

}  // namespace lamina::node
