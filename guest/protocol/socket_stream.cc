#include "guest/protocol/socket_stream.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <cerrno>
#include <memory>

#include "base/status.h"

namespace lamina::guest {

absl::Status JoinSocketStream(StdioMux& mux, uint32_t stream, UniqueFd socket, std::shared_ptr<void> held) {
  // The mux closes descriptors; a socket's direction ends only by shutdown.
  const auto whole = std::make_shared<UniqueFd>(std::move(socket));
  UniqueFd source(fcntl(whole->get(), F_DUPFD_CLOEXEC, 0)), sink(fcntl(whole->get(), F_DUPFD_CLOEXEC, 0));
  if (!source || !sink) return ErrnoStatus(errno, "dup a socket");
  RETURN_IF_ERROR(
      mux.AttachSink(stream, std::move(sink), [whole, held] { shutdown(whole->get(), SHUT_WR); }));
  absl::Status status =
      mux.AttachSource(stream, std::move(source), [whole, held] { shutdown(whole->get(), SHUT_RD); });
  if (!status.ok()) mux.Close(stream);
  return status;
}

}  // namespace lamina::guest
