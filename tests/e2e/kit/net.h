// Sockets for the tests: bounded connects, reads and one-shot HTTP, also from inside another network
// namespace.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace lamina::e2e {

using Deadline = std::chrono::steady_clock::time_point;
inline Deadline In(std::chrono::milliseconds duration) { return std::chrono::steady_clock::now() + duration; }
// Milliseconds until the deadline as poll(2) wants them: never negative.
int Remaining(Deadline deadline);

// Runs `attempt` until it is OK, with short pauses; at the deadline returns its last error.
template <typename Attempt>
absl::Status Eventually(Deadline deadline, Attempt attempt) {
  for (;;) {
    absl::Status status = attempt();
    if (status.ok() || std::chrono::steady_clock::now() >= deadline) return status;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

// A port of 127.0.0.1 that was free a moment ago.
absl::StatusOr<uint16_t> FreePort();

// A TCP connection; `netns` (a path) is where it starts, empty: ours. Non-blocking.
absl::StatusOr<UniqueFd> Connect(const std::string& ipv4, uint16_t port, Deadline deadline,
                                 const std::string& netns = "");
// OK when something listens on the unix socket.
absl::Status ProbeUnixSocket(const std::string& path);
absl::Status SendAll(int fd, std::string_view data, Deadline deadline);
// Up to 64 KiB; empty at the end of the stream.
absl::StatusOr<std::string> Receive(int fd, Deadline deadline);
absl::StatusOr<std::string> ReceiveAll(int fd, Deadline deadline);

struct HttpResponse {
  int code = 0;
  std::string body;
};
// GET with HTTP/1.0: the answer ends with the connection.
absl::StatusOr<HttpResponse> HttpGet(const std::string& ipv4, uint16_t port, const std::string& path,
                                     Deadline deadline, const std::string& netns = "");

// Answers each connection with an HTTP response whose body is "<body> from <peer's address>". Lives in a
// network namespace, served by a thread of this process.
class HttpServer {
 public:
  // port 0: any. `ipv4` must exist in `netns`.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& ipv4, uint16_t port,
                                                           const std::string& body,
                                                           const std::string& netns = "");
  ~HttpServer();
  uint16_t port() const { return port_; }

 private:
  HttpServer(UniqueFd listener, uint16_t port, std::string body);
  void Serve();
  UniqueFd listener_, stop_;
  uint16_t port_;
  std::string body_;
  std::thread thread_;
};

}  // namespace lamina::e2e
