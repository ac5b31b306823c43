#include "node/rest_listener.h"

#include <cpprest/http_listener.h>
#include <openssl/crypto.h>

#include <exception>

#include "absl/status/status.h"

namespace lamina::node {
namespace {

using web::http::experimental::listener::http_listener;

class CppRestListener : public RestListener {
 public:
  CppRestListener(const std::string& address, std::string secret, RestHandler handler)
      : secret_(std::move(secret)), handler_(std::move(handler)), listener_(web::uri("http://" + address)) {
    const auto serve = [this](const web::http::http_request& request) { Serve(request); };
    listener_.support(serve);
    // Those that cpprestsdk would answer itself.
    for (const auto& method : {web::http::methods::TRCE, web::http::methods::OPTIONS})
      listener_.support(method, serve);
    listener_.open().wait();
  }
  ~CppRestListener() override {
    try {
      listener_.close().wait();
    } catch (const std::exception&) {
      // Closing a listener that is broken already: nothing is left to do.
    }
  }

 private:
  bool FromTheFront(const web::http::http_request& request) const {
    const auto field = request.headers().find(kSecretField);
    return request.method() == web::http::methods::GET && field != request.headers().end() &&
           field->second.size() == secret_.size() &&
           CRYPTO_memcmp(field->second.data(), secret_.data(), secret_.size()) == 0;
  }

  void Serve(const web::http::http_request& request) {
    const RestAnswer answer = FromTheFront(request)
                                  ? handler_(request.relative_uri().path())
                                  : RestAnswer{403, "application/json", "{\"error\": \"forbidden\"}\n"};
    web::http::http_response response(static_cast<web::http::status_code>(answer.status));
    response.set_body(answer.body, answer.content_type);
    request.reply(response).then([](pplx::task<void> done) {
      try {
        done.get();
      } catch (const std::exception&) {
        // The front went away before its answer: its loss.
      }
    });
  }

  const std::string secret_;
  RestHandler handler_;
  http_listener listener_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RestListener>> RestListener::Listen(uint16_t port, std::string secret,
                                                                   RestHandler handler) {
  const std::string address = "127.0.0.1:" + std::to_string(port);
  try {
    return std::make_unique<CppRestListener>(address, std::move(secret), std::move(handler));
  } catch (const std::exception& error) {
    return absl::UnavailableError("REST's inner listener at " + address + ": " + error.what());
  }
}

}  // namespace lamina::node
