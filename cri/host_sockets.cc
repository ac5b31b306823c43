#include "cri/host_sockets.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdlib>

#include "base/log.h"
#include "base/sha256.h"
#include "base/status.h"
#include "base/unix_socket.h"
#include "guest/protocol/contract.h"
#include "guest/protocol/socket_stream.h"
#include "proto/agent.pb.h"

namespace lamina::cri {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kAgentTimeout{30};
constexpr std::chrono::seconds kConnectTimeout{10};
constexpr std::chrono::milliseconds kAgain{200};
constexpr size_t kStackBytes = 64 * 1024;
// Above those of processes, which are counted from 1; a shim that takes over begins where none before it was.
constexpr uint32_t kFirstStream = 1U << 31;

std::string RealPath(const std::string& path) {
  char real[PATH_MAX];
  return realpath(path.c_str(), real) == nullptr ? std::string() : real;
}

}  // namespace

void HostSockets::Attach(ttrpc::Caller& agent, guest::StdioMux& mux, std::function<bool()> alive) {
  agent_ = &agent;
  mux_ = &mux;
  alive_ = std::move(alive);
  const auto now =
      std::chrono::duration_cast<std::chrono::milliseconds>(steady_clock::now().time_since_epoch()).count();
  next_stream_ = kFirstStream | static_cast<uint32_t>(now);
}

absl::Status HostSockets::CheckAllowed(const std::string& real, const std::string& source) const {
  const bool allowed = std::any_of(allowed_.begin(), allowed_.end(), [&](const std::string& entry) {
    const std::string place = RealPath(entry);
    return !place.empty() && (entry.ends_with('/') ? real.starts_with(place + "/") : real == place);
  });
  if (allowed) return absl::OkStatus();
  return MakeStatus(absl::StatusCode::kPermissionDenied,
                    "{} is a socket of the node, which a VM does not see: volumes.sockets in the node's "
                    "configuration must name it",
                    source);
}

absl::StatusOr<std::string> HostSockets::Offer(const std::string& source) {
  struct stat info {};
  const std::string real = RealPath(source);
  if (real.empty() || stat(real.c_str(), &info) != 0) return ErrnoStatus(errno, "socket " + source);
  RETURN_IF_ERROR(CheckAllowed(real, source));
  const std::string name = "s" + Sha256(real).substr(0, 20),
                    in_guest = fmt::format("{}/{}", guest::kSocketsDirectory, name);
  {
    MutexLock lock(mutex_);
    if (stopped_) return absl::FailedPreconditionError("the pod's VM does not run");
    if (offered_.count(real) != 0) return in_guest;
  }
  agent::v1::OfferSocketRequest offer;
  offer.set_name(name);
  offer.mutable_owner()->set_uid(info.st_uid);
  offer.mutable_owner()->set_gid(info.st_gid);
  offer.mutable_owner()->set_mode(info.st_mode & 0777);
  RETURN_IF_ERROR(
      Annotate(ttrpc::Call(*agent_, guest::kOfferSocket, offer, kAgentTimeout).status(), "socket " + source));
  MutexLock lock(mutex_);
  if (offered_.count(real) != 0) return in_guest;
  RETURN_IF_ERROR(threads_.Start(kStackBytes, [this, name, real] { Serve(name, real); }));
  offered_[real] = name;
  return in_guest;
}

void HostSockets::Serve(const std::string& name, const std::string& path) {
  while (ServeOne(name, path)) {
  }
}

bool HostSockets::ServeOne(const std::string& name, const std::string& path) {
  std::shared_ptr<void> place = TakePlace();
  if (place == nullptr) return false;
  agent::v1::SocketRequest socket;
  socket.set_name(name);
  const auto accepted = ttrpc::Call(*agent_, guest::kAcceptSocket, socket, ttrpc::kNoTimeout);
  if (!accepted.ok()) return Pause();
  agent::v1::JoinSocketRequest join;
  join.set_name(name);
  join.set_connection(accepted->connection());
  absl::StatusOr<UniqueFd> connection = ConnectUnix(path, kConnectTimeout);
  absl::Status status = connection.status();
  if (status.ok()) {
    join.set_stream(next_stream_++ | kFirstStream);
    status = guest::JoinSocketStream(*mux_, join.stream(), std::move(*connection), place);
    if (!status.ok()) join.set_stream(0);
  }
  // The guest's own fault, or that of who listens: he who connected sees his connection end.
  if (!status.ok()) LogWarning("a connection from the guest to {}: {}", path, Message(status));
  if (!ttrpc::Call(*agent_, guest::kJoinSocket, join, kAgentTimeout).ok() && join.stream() != 0)
    mux_->Close(join.stream());
  return true;
}

std::shared_ptr<void> HostSockets::TakePlace() {
  MutexLock lock(places_->mutex);
  while (!places_->stopped && places_->open >= kMaxOpenConnections) places_->changed.Wait(places_->mutex);
  if (places_->stopped) return nullptr;
  ++places_->open;
  const auto leave = [](Places* places) {
    MutexLock lock(places->mutex);
    --places->open;
    places->changed.NotifyAll();
  };
  return std::shared_ptr<void>(places_.get(), [places = places_, leave](void*) { leave(places.get()); });
}

// The guest goes on after a lost connection, not after its end.
bool HostSockets::Pause() {
  const auto until = steady_clock::now() + kAgain;
  MutexLock lock(mutex_);
  while (!stopped_ && changed_.WaitUntil(mutex_, until)) {
  }
  return !stopped_ && agent_->connected() && alive_();
}

void HostSockets::Stop() {
  {
    MutexLock lock(places_->mutex);
    places_->stopped = true;
    places_->changed.NotifyAll();
  }
  MutexLock lock(mutex_);
  stopped_ = true;
  changed_.NotifyAll();
}

}  // namespace lamina::cri
