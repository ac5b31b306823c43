// A ttrpc server: the shim's Task service, laminad, the agent.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ttrpc/method.h"
#include "base/unique_fd.h"

namespace lamina::ttrpc {

struct CallContext {
  std::string service, method;
  std::string ns;                                                 // metadata containerd-namespace-ttrpc
  std::optional<std::chrono::steady_clock::time_point> deadline;  // from timeout_nano
  int peer_pid = 0;                                               // SO_PEERCRED where there is one
  // Requested once nobody waits for the answer: the connection is closed, or the server stops. What is to be
  // told of it (std::stop_callback) runs on the server's own thread and must not block.
  std::stop_token gone;
  // What a handler puts here runs once the peer has taken the answer (or has not for a second): for what must
  // not outrun it.
  std::function<void()>* after_answer = nullptr;
};

// payload of the request -> payload of the response. Runs on a thread of its own for the call; may block for
// hours (Wait).
using Handler = std::function<absl::StatusOr<std::string>(const CallContext&, std::string_view payload)>;

struct ServerOptions {
  size_t max_concurrent_calls = 1024;  // over it: ResourceExhausted at once
  size_t thread_stack_bytes = 128 * 1024;
  size_t max_connections = 4096;  // accepted ones; with one more, the newest is closed
  size_t idle_threads = 2;        // finished call threads kept for reuse; others end after half a second
};

// Thread-safe. Who connects to a listener and is neither root nor of our own user is closed before anything
// is read of him (base/unix_peer.h). Unknown service or method: Unimplemented with its name. A call for which
// no thread can be started: ResourceExhausted; others go on. Without a free descriptor nobody new is accepted
// until there is one. A handler's exception is not caught: handlers return Status.
class Server {
 public:
  explicit Server(ServerOptions options = {});
  ~Server();  // Stop() and wait

  // Before serving. `service` may be given several names (v2, v3) by registering twice.
  void Register(std::string service, std::string method, Handler handler);

  // Typed form: Request and Response are lite messages; f: StatusOr<Response>(const CallContext&, const
  // Request&).
  template <typename Request, typename Response, typename F>
  void Handle(std::string service, std::string method, F f) {
    Register(std::move(service), std::move(method),
             [f = std::move(f)](const CallContext& context,
                                std::string_view payload) -> absl::StatusOr<std::string> {
               Request request;
               if (!request.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) {
                 return absl::InvalidArgumentError(context.method + ": the request does not parse");
               }
               absl::StatusOr<Response> response = f(context, request);
               if (!response.ok()) return response.status();
               return response->SerializeAsString();
             });
  }
  template <typename Request, typename Response, typename F>
  void Handle(const Method<Request, Response>& method, F f) {
    Handle<Request, Response>(method.service, method.name, std::move(f));
  }

  // Listens on a unix socket at `path` (mode 0600; a stale socket file is replaced) and serves in background
  // threads. As with the two below, nothing is served on error.
  absl::Status Listen(const std::string& path);
  // Serves an already listening unix socket (owned).
  absl::Status ListenFd(UniqueFd listener);
  // Serves one connected stream (owned), e.g. a virtio-serial port; a port whose peer goes away (read of 0)
  // is kept and served again when `persistent`.
  absl::Status ServeFd(UniqueFd stream, bool persistent);

  // Closes listeners and connections; handlers still running finish, their answers are dropped. Idempotent.
  void Stop();
  // Blocks until Stop() was called and all calls have returned.
  void Wait();

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace lamina::ttrpc
