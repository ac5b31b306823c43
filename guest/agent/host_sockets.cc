#include "guest/agent/host_sockets.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/safe_id.h"
#include "base/status.h"
#include "base/unix_socket.h"
#include "guest/protocol/contract.h"
#include "guest/protocol/socket_stream.h"
#include "proto/agent.pb.h"

namespace lamina::guest {

absl::Status HostSockets::Offer(const agent::v1::OfferSocketRequest& request) {
  RETURN_IF_ERROR(CheckSafeId(request.name(), "name of a socket"));
  MutexLock lock(mutex_);
  if (closed_) return absl::CancelledError("the guest is ending");
  if (offered_.count(request.name()) != 0) return absl::OkStatus();
  if (offered_.size() >= kMaxHostSockets) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "{} sockets of the host are all that a pod has",
                      kMaxHostSockets);
  }
  if (mkdir(directory_.c_str(), 0711) != 0 && errno != EEXIST)
    return ErrnoStatus(errno, "mkdir " + directory_);
  const std::string path = directory_ + "/" + request.name();
  auto offered = std::make_shared<Offered>();
  ASSIGN_OR_RETURN(offered->listener, ListenUnix(path));
  offered->stop.reset(eventfd(0, EFD_CLOEXEC));
  const agent::v1::Folder& owner = request.owner();
  if (!offered->stop || chown(path.c_str(), owner.uid(), owner.gid()) != 0 ||
      chmod(path.c_str(), owner.mode() & 0777) != 0) {
    const absl::Status status = ErrnoStatus(errno, "make socket " + path);
    unlink(path.c_str());
    return status;
  }
  offered_[request.name()] = std::move(offered);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> HostSockets::Accept(const std::string& name) {
  std::shared_ptr<Offered> offered;
  {
    MutexLock lock(mutex_);
    const auto it = offered_.find(name);
    if (it == offered_.end()) {
      return MakeStatus(absl::StatusCode::kNotFound, "there is no socket {:.160}", name);
    }
    offered = it->second;
  }
  for (;;) {
    pollfd fds[] = {{offered->listener.get(), POLLIN, 0}, {offered->stop.get(), POLLIN, 0}};
    if (poll(fds, 2, -1) < 0 && errno != EINTR) return ErrnoStatus(errno, "wait at socket " + name);
    if (fds[1].revents != 0) return absl::CancelledError("the socket is offered no more");
    if (fds[0].revents == 0) continue;
    // The poll may be another's, whose connection this was.
    UniqueFd connection(accept4(offered->listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!connection) {
      if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) continue;
      return ErrnoStatus(errno, "accept at socket " + name);
    }
    MutexLock lock(mutex_);
    const uint64_t number = offered->next++;
    offered->waiting[number] = std::move(connection);
    if (offered->waiting.size() > kMaxWaitingConnections) offered->waiting.erase(offered->waiting.begin());
    return number;
  }
}

absl::Status HostSockets::Join(const agent::v1::JoinSocketRequest& request) {
  UniqueFd connection;
  {
    MutexLock lock(mutex_);
    const auto it = offered_.find(request.name());
    const bool known = it != offered_.end() && it->second->waiting.count(request.connection()) != 0;
    if (!known) {
      return MakeStatus(absl::StatusCode::kNotFound, "socket {:.160} has no connection {} that waits",
                        request.name(), request.connection());
    }
    connection = std::move(it->second->waiting[request.connection()]);
    it->second->waiting.erase(request.connection());
  }
  if (request.stream() == 0) return absl::OkStatus();
  return JoinSocketStream(mux_, request.stream(), std::move(connection));
}

void HostSockets::Close() {
  MutexLock lock(mutex_);
  closed_ = true;
  for (const auto& [name, offered] : offered_) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(offered->stop.get(), &one, sizeof one);
    unlink((directory_ + "/" + name).c_str());
  }
  offered_.clear();
}

}  // namespace lamina::guest
