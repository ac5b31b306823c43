// A client of REST that does what a well-behaved one would not: bytes as they come, on a socket of its own.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/unique_fd.h"

namespace lamina::testing {

class RestClient {
 public:
  // `receive_bytes`: how much the kernel keeps for it; 0: the usual.
  explicit RestClient(uint16_t port, int receive_bytes = 0)
      : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    if (receive_bytes > 0) setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }

  int fd() const { return fd_.get(); }
  bool connected() const { return connected_; }

  // False when the peer has closed.
  bool Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }

  // What comes until `end` has, or the peer closes, or nothing comes for `patience`.
  std::string Receive(std::string_view end = "",
                      std::chrono::milliseconds patience = std::chrono::seconds(20)) {
    std::string text;
    char buffer[4096];
    for (pollfd readable{fd_.get(), POLLIN, 0}; poll(&readable, 1, static_cast<int>(patience.count())) > 0;) {
      const ssize_t n = read(fd_.get(), buffer, sizeof buffer);
      closed_ = n <= 0;
      if (closed_) break;
      text.append(buffer, static_cast<size_t>(n));
      if (!end.empty() && text.find(end) != std::string::npos) break;
    }
    return text;
  }

  // Of the last Receive: the peer closed.
  bool closed() const { return closed_; }

 private:
  const UniqueFd fd_;
  bool connected_ = false, closed_ = false;
};

}  // namespace lamina::testing
