// Where cpprestsdk's listener stands. It can listen on TCP only and bounds nothing, so that nobody but the
// front may reach it: its threads, whose sockets those are, live in a network namespace of their own.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace lamina::node {

class InnerNetwork {
 public:
  // The process's one. The first call makes it and starts cpprestsdk's threads in it. Where the kernel
  // refuses (no CAP_SYS_ADMIN, no CAP_NET_ADMIN), they are in the process's own network, and `why_open` says
  // so. ResourceExhausted when the threads cannot be made. Thread-safe.
  static absl::StatusOr<const InnerNetwork*> Get();

  // What was refused; empty where the namespace is one of its own.
  const std::string& why_open() const { return why_open_; }

  // Puts the calling thread, and those it starts, into it. Others stay where they are.
  absl::Status Enter() const;

  // A port of the loopback there on which nobody listens. In a network that is not of its own another process
  // may take it first.
  absl::StatusOr<uint16_t> FreePort() const;

 private:
  InnerNetwork() = default;
  absl::Status Make();

  UniqueFd namespace_;
  std::string why_open_;
};

}  // namespace lamina::node
