#include "base/unix_peer.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/log.h"
#include "base/status.h"

namespace lamina {
namespace {

constexpr std::chrono::minutes kComplaintPause{1};

}  // namespace

absl::StatusOr<UnixPeer> PeerOf(int fd) {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0)
    return ErrnoStatus(errno, "ask who has connected (SO_PEERCRED)");
  return UnixPeer{credentials.pid, credentials.uid};
}

bool MayAsk(const UnixPeer& peer) { return peer.uid == 0 || peer.uid == geteuid(); }

UniqueFd Doorkeeper::Admit(UniqueFd accepted, const std::string& door, size_t others, size_t most) {
  const absl::StatusOr<UnixPeer> peer = PeerOf(accepted.get());
  if (!peer.ok()) {
    Complain(fmt::format("{}: {}", door, Message(peer.status())));
  } else if (!MayAsk(*peer)) {
    Complain(fmt::format("{}: user {} (process {}) is turned away: only root and user {} may ask", door,
                         peer->uid, peer->pid, geteuid()));
  } else if (others >= most) {
    Complain(fmt::format("{}: user {} (process {}) is turned away: {} connections are open already", door,
                         peer->uid, peer->pid, others));
  } else {
    return accepted;
  }
  return UniqueFd();
}

void Doorkeeper::Complain(const std::string& what) {
  const auto now = std::chrono::steady_clock::now();
  if (now < next_complaint_) {
    ++unsaid_;
    return;
  }
  next_complaint_ = now + kComplaintPause;
  const uint64_t unsaid = std::exchange(unsaid_, 0);
  LogWarning("{}{}", what, unsaid == 0 ? "" : fmt::format(" ({} more since it was last said)", unsaid));
}

}  // namespace lamina
