#include "node/grpc_door.h"

#include <fcntl.h>
#include <grpcpp/server_posix.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "base/log.h"
#include "base/status.h"
#include "base/ttrpc/thread.h"
#include "base/unix_socket.h"

namespace lamina::node {
namespace {

constexpr int kPauseMs = 100;  // without a free descriptor: how often to try again

ino_t InodeOf(int fd) {
  struct stat info {};
  return fstat(fd, &info) == 0 && S_ISSOCK(info.st_mode) ? info.st_ino : 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcDoor>> GrpcDoor::Open(std::string path, grpc::Server& server,
                                                         size_t most) {
  std::unique_ptr<GrpcDoor> door(new GrpcDoor(std::move(path), server, most));
  ASSIGN_OR_RETURN(door->listener_, ListenUnix(door->path_));
  fcntl(door->listener_.get(), F_SETFL, fcntl(door->listener_.get(), F_GETFL) | O_NONBLOCK);
  door->wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!door->wake_) return ErrnoStatus(errno, "eventfd for gRPC at " + door->path_);
  absl::StatusOr<std::thread> thread = ttrpc::NewThread([raw = door.get()] { raw->Run(); });
  if (!thread.ok()) return Annotate(thread.status(), "gRPC at " + door->path_);
  door->thread_ = std::move(*thread);
  return door;
}

GrpcDoor::~GrpcDoor() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wake_.get(), &one, sizeof one);
  thread_.join();
}

void GrpcDoor::Run() {
  for (bool full = false;;) {
    pollfd events[] = {{wake_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
    // Who waits to be accepted stays ready to read: without a descriptor for him only the wake is listened
    // to.
    poll(events, full ? 1 : 2, full ? kPauseMs : -1);
    if ((events[0].revents & POLLIN) != 0) return;
    full = !Accept();
  }
}

// False when there is no descriptor for who waits.
bool GrpcDoor::Accept() {
  UniqueFd accepted(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!accepted) return errno != EMFILE && errno != ENFILE && errno != ENOMEM && errno != ENOBUFS;
  accepted = keeper_.Admit(std::move(accepted), path_, StillOpen(), most_);
  if (!accepted) return true;
  given_.emplace_back(accepted.get(), InodeOf(accepted.get()));
  grpc::AddInsecureChannelFromFd(&server_, accepted.release());
  return true;
}

size_t GrpcDoor::StillOpen() {
  std::erase_if(given_, [](const auto& given) { return InodeOf(given.first) != given.second; });
  return given_.size();
}

}  // namespace lamina::node
