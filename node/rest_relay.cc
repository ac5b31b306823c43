#include "node/rest_relay.h"

#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <memory>
#include <utility>

#include "base/status.h"

namespace lamina::node {

namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::asio::ip::tcp;

class RestRelay::Call : public std::enable_shared_from_this<Call> {
 public:
  Call(RestRelay& relay, const std::string& target, Done done)
      : relay_(relay), stream_(relay.io_), done_(std::move(done)) {
    request_.method(http::verb::get);
    request_.target(target);
    request_.version(11);
    request_.set(http::field::host, "laminad");
    request_.set(kSecretField, relay.secret_);
    request_.keep_alive(false);
    parser_.body_limit(relay.limits_.answer_bytes);
  }

  void Run() {
    stream_.expires_after(relay_.limits_.answer);
    const tcp::endpoint inner(boost::asio::ip::address_v4::loopback(), relay_.port_);
    stream_.async_connect(inner, [self = shared_from_this()](beast::error_code error) {
      if (error) return self->End(error);
      self->Write();
    });
  }

 private:
  void Write() {
    http::async_write(stream_, request_, [self = shared_from_this()](beast::error_code error, size_t) {
      if (error) return self->End(error);
      self->Read();
    });
  }

  void Read() {
    http::async_read(stream_, buffer_, parser_,
                     [self = shared_from_this()](beast::error_code error, size_t) { self->End(error); });
  }

  void End(beast::error_code error) {
    beast::error_code ignored;
    stream_.socket().close(ignored);
    if (!error) {
      http::response<http::string_body>& response = parser_.get();
      RestAnswer answer;
      answer.status = static_cast<int>(response.result_int());
      answer.content_type = std::string(response[http::field::content_type]);
      answer.body = std::move(response.body());
      done_(std::move(answer));
    } else if (error == beast::error::timeout) {
      done_(absl::DeadlineExceededError("laminad has not answered in time"));
    } else if (error == http::error::body_limit) {
      done_(absl::ResourceExhaustedError("the answer is too long"));
    } else {
      done_(absl::UnavailableError("the inner listener does not answer: " + error.message()));
    }
    done_ = nullptr;
    relay_.Ended();
  }

  RestRelay& relay_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_;
  http::request<http::empty_body> request_;
  http::response_parser<http::string_body> parser_;
  Done done_;
};

void RestRelay::Get(std::string target, Done done) {
  if (running_ >= limits_.calls) {
    waiting_.push_back({std::move(target), std::move(done)});
  } else {
    Start(std::move(target), std::move(done));
  }
}

void RestRelay::Start(std::string target, Done done) {
  ++running_;
  std::make_shared<Call>(*this, target, std::move(done))->Run();
}

void RestRelay::Ended() {
  --running_;
  if (waiting_.empty()) return;
  Waiting next = std::move(waiting_.front());
  waiting_.pop_front();
  Start(std::move(next.target), std::move(next.done));
}

}  // namespace lamina::node
