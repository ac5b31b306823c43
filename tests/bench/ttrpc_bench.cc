// ttrpc over a unix socket, client and server in one process: what a call costs the shim and its peers.
#include <benchmark/benchmark.h>

#include "base/ttrpc/client.h"
#include "base/ttrpc/server.h"
#include "proto/agent.pb.h"
#include "tests/testing/temp_dir.h"

namespace lamina::ttrpc {
namespace {

// Answers a spec with its size, and a request without one at once.
class Echo {
 public:
  Echo() {
    server_.Handle<agent::v1::CreateContainerRequest, agent::v1::CreateContainerResponse>(
        "bench.Echo", "Echo",
        [](const CallContext&, const agent::v1::CreateContainerRequest& request)
            -> absl::StatusOr<agent::v1::CreateContainerResponse> {
          agent::v1::CreateContainerResponse response;
          response.set_pid(static_cast<uint32_t>(request.spec_json().size()));
          return response;
        });
    if (!server_.Listen(dir_.path() + "/s").ok()) abort();
    client_ = *Client::Dial(dir_.path() + "/s", "the echo server");
  }
  bool Call(const agent::v1::CreateContainerRequest& request) {
    agent::v1::CreateContainerResponse response;
    return client_->Call("bench.Echo", "Echo", request, &response, std::chrono::seconds(10)).ok() &&
           response.pid() == request.spec_json().size();
  }
  static Echo& Shared() {
    static Echo echo;
    return echo;
  }

 private:
  testing::TempDir dir_;
  Server server_;
  std::unique_ptr<Client> client_;
};

// Argument: payload of the request in bytes. The largest is near the protocol's limit of 4 MiB.
void RoundTrip(benchmark::State& state) {
  Echo& echo = Echo::Shared();
  agent::v1::CreateContainerRequest request;
  request.set_spec_json(std::string(static_cast<size_t>(state.range(0)), 'x'));
  for (auto _ : state) {
    if (!echo.Call(request)) state.SkipWithError("the call failed");
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(RoundTrip)->Arg(0)->Arg(8 << 10)->Arg(1 << 20)->Arg(4'000'000)->UseRealTime();

// Calls of several threads share one connection.
void SharedConnection(benchmark::State& state) {
  Echo& echo = Echo::Shared();
  const agent::v1::CreateContainerRequest request;
  for (auto _ : state) {
    if (!echo.Call(request)) state.SkipWithError("the call failed");
  }
}
BENCHMARK(SharedConnection)->Threads(1)->Threads(4)->Threads(16)->UseRealTime();

}  // namespace
}  // namespace lamina::ttrpc

BENCHMARK_MAIN();
