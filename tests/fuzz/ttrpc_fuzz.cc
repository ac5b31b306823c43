// Frames in any slicing, a server whose peer sends anything, a client whose peer answers anything. The first
// byte chooses; the second is the slicing.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "base/ttrpc/client.h"
#include "base/ttrpc/frame.h"
#include "base/ttrpc/server.h"
#include "base/unique_fd.h"
#include "proto/agent.pb.h"
#include "tests/fuzz/check.h"

namespace {

using lamina::UniqueFd;
using namespace lamina::ttrpc;

void Pair(UniqueFd& ours, UniqueFd& theirs) {
  int fds[2];
  FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
  ours.reset(fds[0]);
  theirs.reset(fds[1]);
}

void Send(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

void Frames(std::string_view bytes, size_t slice) {
  FrameReader sliced, whole;
  std::string all_sliced, all_whole;
  const auto drain = [](FrameReader& reader, std::string& all) {
    Frame frame;
    for (;;) {
      const auto more = reader.Next(frame);
      if (!more.ok()) return false;
      if (!*more) return true;
      FUZZ_CHECK(frame.payload.size() <= kMaxPayloadBytes);
      FUZZ_CHECK(!frame.oversized || frame.payload.empty());
      all += std::to_string(frame.stream_id) + "/" + std::to_string(static_cast<int>(frame.type)) + "/" +
             std::to_string(frame.flags) + "/" + frame.payload + (frame.oversized ? "!" : ";");
      if (!frame.oversized) FUZZ_CHECK(EncodeFrame(frame).ok());
    }
  };
  whole.Feed(bytes);
  const bool whole_fine = drain(whole, all_whole);
  bool sliced_fine = true;
  for (size_t at = 0; at < bytes.size() && sliced_fine; at += slice) {
    sliced.Feed(bytes.substr(at, slice));
    sliced_fine = drain(sliced, all_sliced);
  }
  FUZZ_CHECK(whole_fine == sliced_fine);
  FUZZ_CHECK(all_whole == all_sliced);
}

void HostilePeerOfAServer(std::string_view bytes, size_t slice) {
  using Request = lamina::agent::v1::ProcessRequest;
  ServerOptions options;
  options.max_concurrent_calls = 4;
  Server server(options);
  server.Handle<Request, Request>(
      "s", "m", [](const CallContext&, const Request& request) { return absl::StatusOr<Request>(request); });
  UniqueFd ours, theirs;
  Pair(ours, theirs);
  FUZZ_CHECK(server.ServeFd(std::move(theirs), false).ok());
  for (size_t at = 0; at < bytes.size(); at += slice) Send(ours.get(), bytes.substr(at, slice));
  shutdown(ours.get(), SHUT_WR);
  char answer[4096];  // until the server has seen the end
  while (read(ours.get(), answer, sizeof answer) > 0) {
  }
  server.Stop();
  server.Wait();
}

void HostilePeerOfAClient(std::string_view bytes) {
  UniqueFd ours, theirs;
  Pair(ours, theirs);
  const auto client = Client::FromFd(std::move(theirs), "peer");
  Send(ours.get(), bytes);
  shutdown(ours.get(), SHUT_WR);
  lamina::agent::v1::ProcessRequest request, response;
  for (int i = 0; i < 2; ++i)
    client->Call("s", "m", request, &response, std::chrono::milliseconds(200)).IgnoreError();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  const size_t slice = std::max<size_t>(1, data[1]);
  switch (data[0] % 4) {
    case 0:
    case 1:
      Frames(bytes, slice);
      break;
    case 2:
      HostilePeerOfAServer(bytes, slice);
      break;
    default:
      HostilePeerOfAClient(bytes);
      break;
  }
  return 0;
}
