#include "guest/protocol/socket_stream.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <cerrno>
#include <memory>

#include "base/status.h"

namespace lamina::guest {

absl::Status JoinSocketStream(StdioMux& mux, uint32_t stream, UniqueFd socket) {
  // The mux closes descriptors; a socket's direction ends only by shutdown.
  const auto held = std::make_shared<UniqueFd>(std::move(socket));
  UniqueFd source(fcntl(held->get(), F_DUPFD_CLOEXEC, 0)), sink(fcntl(held->get(), F_DUPFD_CLOEXEC, 0));
  if (!source || !sink) return ErrnoStatus(errno, "dup a socket");
  RETURN_IF_ERROR(mux.AttachSink(stream, std::move(sink), [held] { shutdown(held->get(), SHUT_WR); }));
  absl::Status status =
      mux.AttachSource(stream, std::move(source), [held] { shutdown(held->get(), SHUT_RD); });
  if (!status.ok()) mux.Close(stream);
  return status;
}

}  // namespace lamina::guest
