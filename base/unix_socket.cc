#include "base/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/status.h"

namespace lamina {
namespace {

absl::StatusOr<sockaddr_un> Address(const std::string& path) {
  RETURN_IF_ERROR(CheckSocketPath(path));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path, path.data(), path.size());
  return address;
}

absl::StatusOr<UniqueFd> NewSocket() {
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return ErrnoStatus(errno, "socket");
  return fd;
}

// Bounds how long connect(2) waits for room in the listener's queue.
void SetSendTimeout(int fd, std::chrono::milliseconds timeout) {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(timeout);
  const timeval value{seconds.count(), std::chrono::microseconds(timeout - seconds).count()};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &value, sizeof value);
}

}  // namespace

absl::Status CheckSocketPath(const std::string& path) {
  if (!path.empty() && path.size() <= kMaxSocketPath) return absl::OkStatus();
  return InvalidArgument("socket path \"{}\" is {} bytes, Linux allows 1 to {}", path, path.size(),
                         kMaxSocketPath);
}

absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path, std::chrono::milliseconds timeout) {
  ASSIGN_OR_RETURN(const sockaddr_un address, Address(path));
  ASSIGN_OR_RETURN(UniqueFd fd, NewSocket());
  SetSendTimeout(fd.get(), timeout);
  int result;
  do {
    result = connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  } while (result != 0 && errno == EINTR);
  if (result != 0 && errno == EAGAIN) {
    return MakeStatus(absl::StatusCode::kUnavailable, "connect to {}: not accepted within {} ms", path,
                      timeout.count());
  }
  if (result != 0) return ErrnoStatus(errno, "connect to " + path);
  SetSendTimeout(fd.get(), std::chrono::milliseconds(0));
  return fd;
}

bool SomebodyListens(const std::string& path) {
  const absl::StatusOr<sockaddr_un> address = Address(path);
  const UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!address.ok() || !fd) return false;
  // EAGAIN: his queue is full.
  return connect(fd.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address) == 0 ||
         errno == EAGAIN;
}

absl::StatusOr<UniqueFd> ListenUnix(const std::string& path, int backlog) {
  ASSIGN_OR_RETURN(const sockaddr_un address, Address(path));
  ASSIGN_OR_RETURN(UniqueFd fd, NewSocket());
  struct stat info {};
  if (lstat(path.c_str(), &info) == 0) {
    if (!S_ISSOCK(info.st_mode)) {
      return MakeStatus(absl::StatusCode::kAlreadyExists, "listen at {}: a file that is no socket is there",
                        path);
    }
    if (unlink(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, "remove " + path);
  }
  // The mode comes from the descriptor (fchmod before bind), so nobody connects in between.
  if (fchmod(fd.get(), 0600) != 0) return ErrnoStatus(errno, "fchmod of a socket for " + path);
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return ErrnoStatus(errno, "bind " + path);
  if (listen(fd.get(), backlog) != 0) return ErrnoStatus(errno, "listen at " + path);
  return fd;
}

}  // namespace lamina
