#include "node/rest_server.h"

#include <cpprest/http_listener.h>
#include <pplx/threadpool.h>

#include <boost/system/system_error.hpp>
#include <exception>

#include "absl/status/status.h"

namespace lamina::node {
namespace {

using web::http::experimental::listener::http_listener;

class CppRestServer : public RestServer {
 public:
  CppRestServer(const std::string& address, RestHandler handler)
      : handler_(std::move(handler)), listener_(web::uri("http://" + address)) {
    const auto serve = [this](const web::http::http_request& request) { Serve(request); };
    listener_.support(serve);
    // Those that cpprestsdk would answer itself.
    for (const auto& method : {web::http::methods::TRCE, web::http::methods::OPTIONS})
      listener_.support(method, serve);
    listener_.open().wait();
  }
  ~CppRestServer() override {
    try {
      listener_.close().wait();
    } catch (const std::exception&) {
      // Closing a listener that is broken already: nothing is left to do.
    }
  }

 private:
  void Serve(const web::http::http_request& request) {
    RestAnswer answer;
    const bool head = request.method() == web::http::methods::HEAD;
    if (head || request.method() == web::http::methods::GET) {
      answer = handler_(request.relative_uri().path());
    } else {
      answer = {405, "application/json", "{\"error\": \"this interface is read-only: use GET\"}\n"};
    }
    web::http::http_response response(static_cast<web::http::status_code>(answer.status));
    if (answer.status == 405) response.headers().add("Allow", "GET, HEAD");
    response.set_body(head ? std::string() : answer.body, answer.content_type);
    request.reply(response).then([](pplx::task<void> done) {
      try {
        done.get();
      } catch (const std::exception&) {
        // The client went away before its answer: its loss.
      }
    });
  }

  RestHandler handler_;
  http_listener listener_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RestServer>> RestServer::Listen(const std::string& address,
                                                               RestHandler handler) {
  try {
    crossplat::threadpool::initialize_with_threads(2);
  } catch (const boost::system::system_error& error) {
    return absl::ResourceExhaustedError("REST at " + address +
                                        ": its threads cannot be made: " + error.what());
  } catch (const std::exception&) {
    // Initialised before in this process.
  }
  try {
    return std::make_unique<CppRestServer>(address, std::move(handler));
  } catch (const std::exception& error) {
    return absl::UnavailableError("REST at " + address + ": " + error.what());
  }
}

}  // namespace lamina::node
