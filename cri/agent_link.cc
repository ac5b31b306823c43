#include "cri/agent_link.h"

#include <poll.h>

#include <algorithm>
#include <array>

#include "base/log.h"
#include "base/printable.h"
#include "base/status.h"
#include "guest/protocol/contract.h"
#include "guest/protocol/greeting.h"

namespace lamina::cri {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kGreeting{2};  // one try of several
constexpr size_t kMaxErrorBytes = 512;        // of what a guest says of its failure
constexpr int kAgainMillis = 50;              // after a connection that came to nothing

// Made twice, these do what they do once: a lost answer costs nothing. The others are for the caller to
// decide.
bool Repeatable(std::string_view method) {
  constexpr std::array kMethods = {
      guest::kConfigureSandbox.name, guest::kMountLayers.name,     guest::kUnmountLayers.name,
      guest::kSetVcpus.name,         guest::kWaitProcess.name,     guest::kPids.name,
      guest::kContainerStats.name,   guest::kUpdateContainer.name, guest::kDeleteProcess.name,
      guest::kResizeTerminal.name,   guest::kGuestInfo.name,       guest::kReadFile.name};
  return std::find(kMethods.begin(), kMethods.end(), method) != kMethods.end();
}

// A guest may write what it likes into an error, which goes into logs, events and the kubelet's messages.
absl::Status FromGuest(const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), Printable(Message(status), kMaxErrorBytes));
}

}  // namespace

absl::StatusOr<agent::v1::HelloResponse> AgentLink::Open(std::chrono::nanoseconds timeout) {
  ASSIGN_OR_RETURN(std::shared_ptr<ttrpc::Caller> connection, doors_.dial());
  {
    MutexLock lock(mutex_);
    if (!over_.ok()) return over_;
    connection_ = connection;
  }
  auto hello = guest::Greet(*connection, timeout);
  if (!hello.ok()) return FromGuest(hello.status());
  return hello;
}

void AgentLink::Close() {
  std::shared_ptr<ttrpc::Caller> connection;
  {
    MutexLock lock(mutex_);
    if (over_.ok()) over_ = absl::CancelledError("the pod's VM is being stopped");
    connection = connection_;
  }
  if (connection != nullptr) connection->Close();
}

void AgentLink::CancelCalls() {
  std::shared_ptr<ttrpc::Caller> connection;
  {
    MutexLock lock(mutex_);
    connection = connection_;
  }
  if (connection != nullptr) connection->CancelCalls();
}

bool AgentLink::connected() const {
  MutexLock lock(mutex_);
  return over_.ok() && connection_ != nullptr && connection_->connected();
}

absl::Status AgentLink::Call(std::string_view service, std::string_view method,
                             const google::protobuf::MessageLite& request,
                             google::protobuf::MessageLite* response, std::chrono::nanoseconds timeout,
                             const std::map<std::string, std::string>& metadata) {
  for (bool again = false;; again = true) {
    std::shared_ptr<ttrpc::Caller> connection;
    {
      MutexLock lock(mutex_);
      if (!over_.ok()) return over_;
      connection = connection_;
    }
    if (connection == nullptr) return absl::FailedPreconditionError("the pod's VM does not run");
    const absl::Status status =
        FromGuest(connection->Call(service, method, request, response, timeout, metadata));
    // A guest may answer Unavailable itself; only a lost connection is made anew.
    if (status.code() != absl::StatusCode::kUnavailable || connection->connected()) return status;
    RETURN_IF_ERROR(Renew(connection));
    // A watcher asks for hours: it may see many connections. Another call is made twice at most.
    const bool waits = timeout == ttrpc::kNoTimeout;
    if (!Repeatable(method) || (again && !waits)) return status;
  }
}

absl::Status AgentLink::Renew(const std::shared_ptr<ttrpc::Caller>& lost) {
  MutexLock renewing(renew_mutex_);
  {
    MutexLock lock(mutex_);
    if (!over_.ok()) return over_;
    if (connection_ != lost) return absl::OkStatus();
  }
  absl::Status status = doors_.alive();
  if (!status.ok()) return status;
  LogWarning("the connection to the guest's agent is lost; it is made anew");
  const auto deadline = steady_clock::now() + doors_.patience;
  do {
    status = Greeted();
    if (status.ok()) return status;
    const absl::Status alive = doors_.alive();
    if (!alive.ok()) return alive;
    {
      MutexLock lock(mutex_);
      if (!over_.ok()) return over_;
    }
    poll(nullptr, 0, kAgainMillis);
  } while (steady_clock::now() < deadline);
  status = Annotate(status, "the guest's agent does not answer any more");
  {
    MutexLock lock(mutex_);
    if (!over_.ok()) return over_;
    over_ = status;
  }
  if (doors_.given_up) doors_.given_up(status);
  return status;
}

absl::Status AgentLink::Greeted() {
  ASSIGN_OR_RETURN(std::shared_ptr<ttrpc::Caller> connection, doors_.dial());
  const std::chrono::nanoseconds timeout = std::min<std::chrono::nanoseconds>(kGreeting, doors_.patience);
  RETURN_IF_ERROR(FromGuest(guest::Greet(*connection, timeout).status()));
  MutexLock lock(mutex_);
  if (!over_.ok()) return over_;
  connection_ = std::move(connection);
  return absl::OkStatus();
}

}  // namespace lamina::cri
