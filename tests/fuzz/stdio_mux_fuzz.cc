// The stdio channel with a guest at its other end that sends anything. Bytes go to the host's mux, which has
// streams in both directions; whatever comes, it ends, nothing was written beyond a window, and what it holds
// meanwhile is bounded.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <string_view>

#include "guest/protocol/stdio_mux.h"
#include "tests/fuzz/check.h"

using lamina::UniqueFd;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view bytes(reinterpret_cast<const char*>(data), size);
  int channel[2], in[2], out[2];
  FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel) == 0);
  FUZZ_CHECK(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC | O_NONBLOCK) == 0);
  UniqueFd peer(channel[1]), in_write(in[1]), out_read(out[0]);
  const auto mux = lamina::guest::StdioMux::Create(UniqueFd(channel[0]));
  // As stdio_mux.h promises: the channel's own, and what waits for the one sink, whose pipe nobody reads.
  const size_t bound = (1 << 20) + 2 * lamina::guest::kStdioWindowBytes;
  FUZZ_CHECK(mux->AttachSource(1, UniqueFd(in[0]), nullptr).ok());
  FUZZ_CHECK(mux->AttachSink(2, UniqueFd(out[1]), nullptr).ok());
  FUZZ_CHECK(write(in_write.get(), "hello", 5) == 5);
  while (!bytes.empty()) {
    const ssize_t n = send(peer.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) break;
    bytes.remove_prefix(static_cast<size_t>(n));
    FUZZ_CHECK(mux->buffered_bytes() <= bound);
  }
  shutdown(peer.get(), SHUT_WR);
  // Whatever came, the peer's end is the channel's.
  while (mux->status().ok()) {
    FUZZ_CHECK(mux->buffered_bytes() <= bound);
    poll(nullptr, 0, 1);
  }
  char buffer[4096];
  size_t written = 0;
  for (ssize_t n; (n = read(out_read.get(), buffer, sizeof buffer)) > 0;) written += static_cast<size_t>(n);
  FUZZ_CHECK(written <= size);
  mux->Close(1);
  mux->Close(2);
  mux->Close(0xFFFFFFFF);
  return 0;
}
