// The connection to a pod's agent, made anew when it is lost.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/ttrpc/method.h"
#include "proto/agent.pb.h"

namespace lamina::cri {

// Thread-safe. A guest that breaks the protocol, or a port that was closed, costs a connection and not the
// pod: the link dials and greets again, and makes the call again where that does no harm. A guest that does
// not answer the greeting is given up, once and for ever.
class AgentLink : public ttrpc::Caller {
 public:
  struct Doors {
    // A new connection to the agent's port.
    std::function<absl::StatusOr<std::unique_ptr<ttrpc::Caller>>()> dial;
    // OK while the VM lives; a connection that is lost with its VM is not looked for.
    std::function<absl::Status()> alive;
    // Once, when the guest is given up: why. Runs on the thread of a call.
    std::function<void(const absl::Status&)> given_up;
    std::chrono::milliseconds patience{10'000};  // for a greeting after the first one
  };

  explicit AgentLink(Doors doors) : doors_(std::move(doors)) {}

  // The first connection, and the guest's answer to Hello; `timeout` spans its boot.
  absl::StatusOr<agent::v1::HelloResponse> Open(std::chrono::nanoseconds timeout);
  // Calls under way, and later ones, fail with Cancelled; nothing is dialled any more.
  void Close() override;

  absl::Status Call(std::string_view service, std::string_view method,
                    const google::protobuf::MessageLite& request, google::protobuf::MessageLite* response,
                    std::chrono::nanoseconds timeout,
                    const std::map<std::string, std::string>& metadata = {}) override;
  void CancelCalls() override;
  bool connected() const override;

 private:
  // OK when there is another connection than `lost`.
  absl::Status Renew(const std::shared_ptr<ttrpc::Caller>& lost);
  absl::Status Greeted();

  const Doors doors_;
  Mutex renew_mutex_;  // held while a connection is made; before mutex_
  mutable Mutex mutex_;
  std::shared_ptr<ttrpc::Caller> connection_ GUARDED_BY(mutex_);
  absl::Status over_ GUARDED_BY(mutex_);  // not OK: no connection will be made any more
};

}  // namespace lamina::cri
