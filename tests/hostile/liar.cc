// A guest whose agent answers every call at once, and (but for the time, if it is told to) never with the
// truth: init of a guest image.
#include <sys/mount.h>
#include <time.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <stop_token>
#include <string>

#include "base/ttrpc/server.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"
#include "tests/testing/guest_ports.h"

namespace lamina::hostile {
namespace {

using namespace agent::v1;
constexpr uint32_t kMost = std::numeric_limits<uint32_t>::max();
constexpr uint64_t kMost64 = std::numeric_limits<uint64_t>::max();

// A screen that is cleared, a line that is forged, bytes that are no text.
std::string Insult(size_t bytes) {
  const std::string piece = "\x1b[2J\n2000-01-01T00:00:00Z error all pods are lost\n\xff\xfe";
  std::string text;
  while (text.size() + piece.size() <= bytes) text += piece;
  return text;
}

// The kernel's argument truth=clock: who lies of the time is found out before the other lies.
bool TellsTheTime() { return getenv("truth") != nullptr; }

void AwaitRequest(const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any never;
  std::unique_lock lock(mutex);
  never.wait(lock, stop, [] { return false; });
}

// What the agent does: the guest's clock, moved by so much.
int64_t StepClock(int64_t offset_nanos) {
  constexpr int64_t kSecond = 1'000'000'000;
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  const int64_t nanos = now.tv_sec * kSecond + now.tv_nsec + offset_nanos;
  now = {nanos / kSecond, nanos % kSecond};
  clock_settime(CLOCK_REALTIME, &now);
  return nanos;
}

template <typename Request, typename Response>
void Answer(ttrpc::Server& server, const ttrpc::Method<Request, Response>& method, Response answer) {
  server.Handle(method,
                [answer = std::move(answer)](const ttrpc::CallContext&,
                                             const Request&) -> absl::StatusOr<Response> { return answer; });
}

template <typename Request, typename Response>
void Refuse(ttrpc::Server& server, const ttrpc::Method<Request, Response>& method) {
  server.Handle(method, [](const ttrpc::CallContext&, const Request&) -> absl::StatusOr<Response> {
    return absl::InternalError(Insult(2 << 20));
  });
}

void Serve(ttrpc::Server& server) {
  HelloResponse hello;
  hello.set_protocol_version(guest::kProtocolVersion);
  hello.set_agent_version(std::string(1 << 20, 'v'));
  hello.set_mem_total_bytes(kMost64);
  hello.set_agent_started_boot_seconds(-1e308);
  Answer(server, guest::kHello, hello);
  server.Handle(guest::kAdjustClock,
                [](const ttrpc::CallContext&,
                   const AdjustClockRequest& request) -> absl::StatusOr<AdjustClockResponse> {
                  AdjustClockResponse clock;
                  clock.set_unix_nanos(TellsTheTime() ? StepClock(request.offset_nanos())
                                                      : std::numeric_limits<int64_t>::min());
                  return clock;
                });
  Answer(server, guest::kConfigureSandbox, Empty());
  MountLayersResponse mounted;
  for (int i = 0; i < 10'000; ++i) {
    LayerResult& result = *mounted.add_results();
    result.set_id("../../etc");
    result.set_mount_seconds(std::numeric_limits<double>::quiet_NaN());
  }
  Answer(server, guest::kMountLayers, mounted);
  Answer(server, guest::kUnmountLayers, Empty());
  CreateContainerResponse created;
  created.set_pid(kMost);
  Answer(server, guest::kCreateContainer, created);
  Answer(server, guest::kExecCreate, Empty());
  StartProcessResponse started;
  started.set_pid(kMost);
  Answer(server, guest::kStartProcess, started);
  server.Handle(guest::kWaitProcess,
                [](const ttrpc::CallContext& call,
                   const ProcessRequest& request) -> absl::StatusOr<WaitProcessResponse> {
                  if (request.exec_id().empty()) AwaitRequest(call.gone);
                  WaitProcessResponse exit;
                  exit.set_exit_status(kMost);
                  exit.set_oom_killed(true);
                  return exit;
                });
  Answer(server, guest::kSignalProcess, Empty());
  Refuse(server, guest::kResizeTerminal);
  Refuse(server, guest::kDeleteProcess);
  Refuse(server, guest::kUpdateContainer);
  ContainerStats stats;
  stats.set_cpu_usage_usec(kMost64);
  stats.set_memory_usage_bytes(kMost64);
  stats.set_memory_limit_bytes(1);
  stats.set_pids_current(kMost64);
  for (int i = 0; i < 50'000; ++i)
    (*stats.mutable_memory_stat())["inactive_file" + std::to_string(i)] = kMost64;
  (*stats.mutable_memory_stat())["inactive_file"] = kMost64;
  Answer(server, guest::kContainerStats, stats);
  PidsResponse pids;
  for (uint32_t i = 0; i < 500'000; ++i) pids.add_pids(kMost - i);
  Answer(server, guest::kPids, pids);
  GuestInfoResponse info;
  info.set_online_vcpus(kMost);
  info.set_mounts(Insult(3 << 20));
  Answer(server, guest::kGuestInfo, info);
  SetVcpusResponse vcpus;
  vcpus.set_online(kMost);
  Answer(server, guest::kSetVcpus, vcpus);
  Refuse(server, guest::kShutdown);
}

}  // namespace
}  // namespace lamina::hostile

int main() {
  mount("proc", "/proc", "proc", 0, nullptr);
  mount("sysfs", "/sys", "sysfs", 0, nullptr);
  mount("devtmpfs", "/dev", "devtmpfs", 0, nullptr);
  lamina::testing::LoadBootModules();
  lamina::ttrpc::Server server;
  lamina::hostile::Serve(server);
  // Nobody reads what is written to the streams.
  lamina::testing::OpenPort("lamina.stdio");
  const lamina::UniqueFd rpc(lamina::testing::OpenPort("lamina.rpc"));
  if (!server.ServeFd(lamina::UniqueFd(dup(rpc.get())), true).ok()) return 1;
  server.Wait();
}
