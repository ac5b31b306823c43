#include "tests/e2e/kit/net.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <functional>

#include "base/status.h"
#include "base/unix_socket.h"

namespace lamina::e2e {
namespace {

absl::StatusOr<sockaddr_in> Address(const std::string& ipv4, uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  if (inet_pton(AF_INET, ipv4.c_str(), &address.sin_addr) != 1)
    return InvalidArgument("\"{}\" is no IPv4 address", ipv4);
  return address;
}

// A socket made in `netns` stays there, so only its creation needs a thread that has moved.
absl::StatusOr<UniqueFd> Socket(const std::string& netns) {
  const auto make = [] { return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); };
  int fd = -1, error = 0;
  if (netns.empty()) {
    fd = make();
    error = errno;
  } else {
    std::thread([&] {
      UniqueFd ns(open(netns.c_str(), O_RDONLY | O_CLOEXEC));
      if (ns && setns(ns.get(), CLONE_NEWNET) == 0) fd = make();
      error = errno;
    }).join();
  }
  if (fd < 0) return ErrnoStatus(error, fmt::format("socket in network namespace \"{}\"", netns));
  return UniqueFd(fd);
}

absl::Status WaitFor(int fd, short events, Deadline deadline, const char* what) {
  pollfd poll_fd{fd, events, 0};
  for (;;) {
    const int n = poll(&poll_fd, 1, Remaining(deadline));
    if (n > 0) return absl::OkStatus();
    if (n == 0)
      return MakeStatus(absl::StatusCode::kDeadlineExceeded, "{}: nothing before the deadline", what);
    if (errno != EINTR) return ErrnoStatus(errno, what);
  }
}

}  // namespace

int Remaining(Deadline deadline) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now())
          .count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1'000'000));
}

absl::StatusOr<uint16_t> FreePort() {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (!fd || bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return ErrnoStatus(errno, "find a free port of 127.0.0.1");
  }
  return ntohs(address.sin_port);
}

absl::StatusOr<UniqueFd> Connect(const std::string& ipv4, uint16_t port, Deadline deadline,
                                 const std::string& netns) {
  ASSIGN_OR_RETURN(const sockaddr_in address, Address(ipv4, port));
  ASSIGN_OR_RETURN(UniqueFd fd, Socket(netns));
  const std::string what = fmt::format("connect to {}:{}", ipv4, port);
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (errno != EINPROGRESS) return ErrnoStatus(errno, what);
    RETURN_IF_ERROR(WaitFor(fd.get(), POLLOUT, deadline, what.c_str()));
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) return ErrnoStatus(error, what);
  }
  return fd;
}

absl::Status ProbeUnixSocket(const std::string& path) { return ConnectUnix(path).status(); }

absl::Status SendAll(int fd, std::string_view data, Deadline deadline) {
  while (!data.empty()) {
    const ssize_t n = send(fd, data.data(), data.size(), MSG_NOSIGNAL);
    if (n >= 0) {
      data.remove_prefix(static_cast<size_t>(n));
    } else if (errno == EAGAIN) {
      RETURN_IF_ERROR(WaitFor(fd, POLLOUT, deadline, "send"));
    } else if (errno != EINTR) {
      return ErrnoStatus(errno, "send");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Receive(int fd, Deadline deadline) {
  std::string data(64 * 1024, '\0');
  for (;;) {
    const ssize_t n = recv(fd, data.data(), data.size(), 0);
    if (n >= 0) {
      data.resize(static_cast<size_t>(n));
      return data;
    }
    if (errno == EAGAIN) {
      RETURN_IF_ERROR(WaitFor(fd, POLLIN, deadline, "receive"));
    } else if (errno != EINTR) {
      return ErrnoStatus(errno, "receive");
    }
  }
}

absl::StatusOr<std::string> ReceiveAll(int fd, Deadline deadline) {
  std::string all;
  for (;;) {
    ASSIGN_OR_RETURN(const std::string part, Receive(fd, deadline));
    if (part.empty()) return all;
    all += part;
  }
}

absl::StatusOr<HttpResponse> HttpGet(const std::string& ipv4, uint16_t port, const std::string& path,
                                     Deadline deadline, const std::string& netns) {
  ASSIGN_OR_RETURN(const UniqueFd fd, Connect(ipv4, port, deadline, netns));
  RETURN_IF_ERROR(
      SendAll(fd.get(), fmt::format("GET {} HTTP/1.0\r\nHost: {}:{}\r\n\r\n", path, ipv4, port), deadline));
  ASSIGN_OR_RETURN(const std::string answer, ReceiveAll(fd.get(), deadline));
  const size_t end = answer.find("\r\n\r\n");
  if (answer.rfind("HTTP/1.", 0) != 0 || end == std::string::npos) {
    return MakeStatus(absl::StatusCode::kUnavailable, "GET {}: the answer is no HTTP: \"{}\"", path,
                      answer.substr(0, 100));
  }
  return HttpResponse{atoi(answer.c_str() + 9), answer.substr(end + 4)};
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& ipv4, uint16_t port,
                                                              const std::string& body,
                                                              const std::string& netns) {
  ASSIGN_OR_RETURN(sockaddr_in address, Address(ipv4, port));
  ASSIGN_OR_RETURN(UniqueFd fd, Socket(netns));
  const int one = 1;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  socklen_t length = sizeof address;
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length) != 0 || listen(fd.get(), 16) != 0 ||
      getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return ErrnoStatus(errno, fmt::format("listen on {}:{}", ipv4, port));
  }
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(fd), ntohs(address.sin_port), body));
}

HttpServer::HttpServer(UniqueFd listener, uint16_t port, std::string body)
    : listener_(std::move(listener)), stop_(eventfd(0, EFD_CLOEXEC)), port_(port), body_(std::move(body)) {
  thread_ = std::thread([this] { Serve(); });
}

HttpServer::~HttpServer() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(stop_.get(), &one, sizeof one);
  thread_.join();
}

void HttpServer::Serve() {
  for (;;) {
    pollfd fds[] = {{listener_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    if (poll(fds, 2, -1) < 0 && errno != EINTR) return;
    if (fds[1].revents != 0) return;
    sockaddr_in peer{};
    socklen_t length = sizeof peer;
    UniqueFd client(
        accept4(listener_.get(), reinterpret_cast<sockaddr*>(&peer), &length, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!client) continue;
    char name[INET_ADDRSTRLEN];
    inet_ntop(AF_INET, &peer.sin_addr, name, sizeof name);
    const std::string body = fmt::format("{} from {}\n", body_, name);
    const Deadline deadline = In(std::chrono::seconds(5));
    // The request is read first: closing with unread data would reset the connection under the client.
    std::string request;
    while (request.find("\r\n\r\n") == std::string::npos) {
      auto part = Receive(client.get(), deadline);
      if (!part.ok() || part->empty()) break;
      request += *part;
    }
    SendAll(client.get(), fmt::format("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{}", body.size(), body),
            deadline)
        .IgnoreError();
  }
}

}  // namespace lamina::e2e
