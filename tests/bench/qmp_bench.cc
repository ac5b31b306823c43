// The QMP client against a peer that answers at once: what the client itself adds to a command.
#include <benchmark/benchmark.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "base/unique_fd.h"
#include "vmm/qmp_client.h"

namespace lamina::vmm {
namespace {

constexpr char kGreeting[] =
    R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}})";

// Answers every command of the stream with "return", and with an event before each when asked for.
void Serve(UniqueFd fd, bool events) {
  const auto send = [&fd](const std::string& line) {
    return write(fd.get(), line.data(), line.size()) == static_cast<ssize_t>(line.size());
  };
  if (!send(std::string(kGreeting) + "\r\n")) return;
  std::string pending;
  char buffer[4096];
  for (;;) {
    const ssize_t n = read(fd.get(), buffer, sizeof buffer);
    if (n <= 0) return;
    pending.append(buffer, static_cast<size_t>(n));
    for (size_t end; (end = pending.find('\n')) != std::string::npos; pending.erase(0, end + 1)) {
      const size_t id = pending.find("\"id\":");
      const std::string number =
          id < end ? pending.substr(id + 5, pending.find_first_of(",}", id) - id - 5) : "0";
      std::string answer;
      if (events)
        answer =
            "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"RTC_CHANGE\", \"data\": "
            "{\"offset\": 0}}\r\n";
      answer += "{\"return\": {}, \"id\": " + number + "}\r\n";
      if (!send(answer)) return;
    }
  }
}

void RoundTrip(benchmark::State& state) {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
    state.SkipWithError("no socket pair");
    return;
  }
  std::thread peer(Serve, UniqueFd(fds[1]), state.range(0) != 0);
  {
    auto client =
        QmpClient::FromFd(UniqueFd(fds[0]), std::chrono::steady_clock::now() + std::chrono::seconds(10));
    for (auto _ : state) {
      if (!client.ok() || !(*client)->Execute("query-status", "", std::chrono::seconds(10)).ok())
        state.SkipWithError("the command failed");
    }
  }
  peer.join();
}
BENCHMARK(RoundTrip)->ArgName("with_event")->Arg(0)->Arg(1)->UseRealTime();

void ParseLine(benchmark::State& state) {
  for (auto _ : state) {
    if (!ParseQmpLine(kGreeting).ok()) state.SkipWithError("the greeting does not parse");
  }
}
BENCHMARK(ParseLine);

}  // namespace
}  // namespace lamina::vmm

BENCHMARK_MAIN();
