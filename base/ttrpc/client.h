// A ttrpc client on one connection: containerd's events, laminad, the guest's agent.
#pragma once

#include <memory>
#include <string>

#include "base/ttrpc/method.h"
#include "base/unique_fd.h"

namespace lamina::ttrpc {

// Thread-safe; calls from many threads share the connection and are answered in any order. One reader thread
// inside, with a small stack.
class Client : public Caller {
 public:
  // Owns a connected stream socket (or the host end of a virtio-serial port). `name` stands in errors
  // ("laminad", "agent"). Where its reader cannot be started (ResourceExhausted) every call answers so.
  static std::unique_ptr<Client> FromFd(UniqueFd fd, std::string name);
  // Unavailable when nobody listens at the unix socket `path`; ResourceExhausted when the reader cannot be
  // started.
  static absl::StatusOr<std::unique_ptr<Client>> Dial(const std::string& path, std::string name);
  ~Client() override;  // fails the calls under way with Cancelled

  // The timeout is sent along as timeout_nano; a late answer is dropped. A peer that does not read holds the
  // caller at most until the deadline. The message of a peer's error comes Printable, at most 4 KiB of
  // it.
  absl::Status Call(std::string_view service, std::string_view method,
                    const google::protobuf::MessageLite& request, google::protobuf::MessageLite* response,
                    std::chrono::nanoseconds timeout,
                    const std::map<std::string, std::string>& metadata = {}) override;

  void CancelCalls() override;
  void Close() override;
  bool connected() const override;

 private:
  class Impl;
  explicit Client(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace lamina::ttrpc
