// Two ends of the stdio streams over a socket pair: bytes a second through one stream, and through many.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "guest/protocol/stdio_mux.h"

namespace lamina::guest {
namespace {

struct Pipe {
  UniqueFd read, write;
  Pipe() {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) abort();
    read.reset(fds[0]);
    write.reset(fds[1]);
  }
};

// Writers fill the guest's sources; readers empty the host's sinks.
void Throughput(benchmark::State& state) {
  const auto streams = static_cast<uint32_t>(state.range(0));
  const auto write_bytes = static_cast<size_t>(state.range(1));
  constexpr size_t kBytes = 64 << 20;  // of an iteration, all streams together
  for (auto _ : state) {
    int channel[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel) != 0) abort();
    auto guest = StdioMux::Create(UniqueFd(channel[0]), {.early_bytes = lamina::guest::kMaxEarlyBytes});
    auto host = StdioMux::Create(UniqueFd(channel[1]));
    std::vector<Pipe> in(streams), out(streams);
    std::vector<std::thread> threads;
    std::vector<size_t> received(streams);
    for (uint32_t i = 0; i < streams; ++i) {
      if (!host->AttachSink(i + 1, std::move(out[i].write), nullptr).ok() ||
          !guest->AttachSource(i + 1, std::move(in[i].read), nullptr).ok()) {
        abort();
      }
      threads.emplace_back([&, i] {
        const std::string data(write_bytes, 'x');
        for (size_t sent = 0; sent < kBytes / streams;) {
          const ssize_t n = write(in[i].write.get(), data.data(), data.size());
          if (n <= 0) break;
          sent += static_cast<size_t>(n);
        }
        in[i].write.reset();
      });
      threads.emplace_back([&, i] {
        std::vector<char> buffer(64 << 10);
        for (ssize_t n; (n = read(out[i].read.get(), buffer.data(), buffer.size())) > 0;)
          received[i] += static_cast<size_t>(n);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const size_t bytes : received) {
      if (bytes < kBytes / streams) state.SkipWithError("bytes are missing");
    }
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kBytes));
}
BENCHMARK(Throughput)
    ->ArgNames({"streams", "write"})
    ->Args({1, 65536})
    ->Args({1, 100})
    ->Args({16, 65536})
    ->UseRealTime();

}  // namespace
}  // namespace lamina::guest

BENCHMARK_MAIN();
