#include "cri/delete_action.h"

#include <unistd.h>

#include "base/clock.h"
#include "base/file_system.h"
#include "base/log.h"
#include "base/process.h"
#include "base/status.h"
#include "base/ttrpc/client.h"
#include "base/unix_socket.h"
#include "cri/cleanup.h"
#include "cri/messages.h"
#include "persist/state_store.h"

namespace lamina::cri {
namespace {

constexpr std::chrono::seconds kKillTimeout{5};
constexpr ttrpc::Method<containerd::TaskRequest, containerd::ConnectResponse> kConnect{
    "containerd.task.v2.Task", "Connect"};

// Any answer will do: what counts is that somebody is there who thinks.
bool Answers(const std::string& socket, const std::string& id, std::chrono::milliseconds patience) {
  const auto client = ttrpc::Client::Dial(socket, "the shim");
  if (!client.ok()) return false;
  containerd::TaskRequest request;
  request.set_id(id);
  const absl::StatusCode code = ttrpc::Call(**client, kConnect, request, patience).status().code();
  return code != absl::StatusCode::kDeadlineExceeded && code != absl::StatusCode::kUnavailable;
}

}  // namespace

absl::StatusOr<containerd::DeleteResponse> DeleteLost(const CommandLine& line, const Config& config,
                                                      std::chrono::milliseconds patience) {
  containerd::DeleteResponse response;
  response.set_exit_status(137);
  *response.mutable_exited_at() = ToTimestamp(UnixNanos(Clock::Real().Wall()));
  const std::string path = ShimSocket(config.paths.run_dir, line.ns, line.id);
  persist::StateStore store(FileSystem::Real(), config.paths.state_dir);
  const absl::StatusOr<persist::SandboxState> state = store.Load(line.id);
  if (absl::IsNotFound(state.status())) {
    if (!SomebodyListens(path)) unlink(path.c_str());
    return response;
  }
  RETURN_IF_ERROR(state.status());
  const auto shim = static_cast<pid_t>(state->shim.pid);
  const bool this_boot = state->boot_id.empty() || state->boot_id == BootId();
  if (this_boot && ProcessAlive(shim, state->shim.start_time)) {
    if (Answers(path, line.id, patience)) return response;
    LogWarning("sandbox {}: its shim (process {}) lives but did not answer within {} ms: ending it", line.id,
               shim, patience.count());
    RETURN_IF_ERROR(Annotate(KillProcess(shim, state->shim.start_time, kKillTimeout), "end the silent shim"));
  }
  response.set_pid(static_cast<uint32_t>(state->vmm.pid));
  LaminadClient laminad(config.shim_socket());
  // What the shim wrote last may be newer than what was read before its end.
  const absl::StatusOr<persist::SandboxState> last = store.Load(line.id);
  RETURN_IF_ERROR(CleanUpSandbox(config, laminad, last.ok() ? *last : *state));
  unlink(path.c_str());
  return response;
}

}  // namespace lamina::cri
