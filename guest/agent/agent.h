// The agent: serves proto/agent.proto on the RPC port and the containers' streams on the stdio port.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/ttrpc/server.h"
#include "base/unique_fd.h"
#include "guest/agent/containers.h"
#include "guest/agent/crun.h"
#include "guest/agent/devices.h"
#include "guest/agent/disk_volumes.h"
#include "guest/agent/guest_clock.h"
#include "guest/agent/host_sockets.h"
#include "guest/agent/kept_files.h"
#include "guest/agent/layers.h"
#include "guest/agent/modules.h"
#include "guest/agent/processes.h"
#include "guest/agent/volumes.h"
#include "guest/protocol/contract.h"
#include "guest/protocol/stdio_mux.h"
#include "proto/agent.pb.h"

namespace lamina::guest {

struct AgentOptions {
  std::string root = kGuestDirectory;  // must exist
  std::string crun = "/usr/bin/crun";
  std::string cgroup_mount = "/sys/fs/cgroup";
  bool owns_machine = true;  // false: network, clock, vCPUs… are left alone (the agent as a plain program)
  double started_boot_seconds = 0;
};

// Thread-safe.
class Agent {
 public:
  // `stdio` is the stdio port (owned). `on_shutdown` is called from a call's thread whenever Shutdown has
  // been answered. `modules`, `monitor` and `processes` outlive the agent.
  static absl::StatusOr<std::unique_ptr<Agent>> Create(AgentOptions options, UniqueFd stdio, bool persistent,
                                                       ModuleLoader& modules, DeviceMonitor& monitor,
                                                       ProcessTable& processes,
                                                       std::function<void()> on_shutdown);

  // Adds every method of the service. Before the server serves.
  void Register(ttrpc::Server& server);

  // Kills and removes all containers, unmounts layers and the shared directory. Not for use while calls are
  // being served that make new ones.
  void TearDown();

 private:
  Agent(AgentOptions options, std::unique_ptr<StdioMux> mux, ModuleLoader& modules, DeviceMonitor& monitor,
        ProcessTable& processes, std::function<void()> on_shutdown);
  absl::StatusOr<agent::v1::HelloResponse> Hello(const agent::v1::HelloRequest& request);
  absl::StatusOr<agent::v1::AdjustClockResponse> AdjustClock(const agent::v1::AdjustClockRequest& request);
  absl::Status Configure(const agent::v1::ConfigureSandboxRequest& request);
  absl::Status ConfigureNetwork(const agent::v1::ConfigureSandboxRequest& request);
  absl::Status WritePodFiles(const agent::v1::ConfigureSandboxRequest& request) REQUIRES(configure_mutex_);
  absl::StatusOr<agent::v1::MountLayersResponse> MountLayers(const agent::v1::MountLayersRequest& request);
  absl::Status UnmountLayers(const agent::v1::UnmountLayersRequest& request);
  void RegisterMachine(ttrpc::Server& server);
  void RegisterFiles(ttrpc::Server& server);
  void RegisterContainers(ttrpc::Server& server);
  void RegisterProcesses(ttrpc::Server& server);

  const AgentOptions options_;
  const std::unique_ptr<StdioMux> mux_;
  ModuleLoader& modules_;
  DeviceMonitor& monitor_;
  const std::function<void()> on_shutdown_;
  GuestClock clock_;
  Crun crun_;
  LayerTable layers_;
  DiskVolumes disks_;
  VolumeTable volumes_;
  HostSockets sockets_;
  ContainerTable containers_;
  KeptFiles kept_files_;
  Mutex configure_mutex_;
  std::string configured_ GUARDED_BY(configure_mutex_);  // the request that was carried out
  std::string sandbox_id_ GUARDED_BY(configure_mutex_);
};

}  // namespace lamina::guest
