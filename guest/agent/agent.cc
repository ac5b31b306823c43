#include "guest/agent/agent.h"

#include <net/if.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/safe_id.h"
#include "base/status.h"
#include "base/version.h"
#include "guest/agent/files.h"
#include "guest/agent/network.h"
#include "guest/agent/system.h"

namespace lamina::guest {
namespace {

using namespace agent::v1;  // the messages of the service that this file implements

constexpr auto kNetDeviceTimeout = std::chrono::seconds(5);

std::string LowerCase(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

absl::StatusOr<Empty> Done(const absl::Status& status) {
  if (!status.ok()) return status;
  return Empty();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Agent>> Agent::Create(AgentOptions options, UniqueFd stdio, bool persistent,
                                                     ModuleLoader& modules, DeviceMonitor& monitor,
                                                     ProcessTable& processes,
                                                     std::function<void()> on_shutdown) {
  for (const char* sub : {"", "/layers", "/l", "/containers", "/crun", "/log", "/shared"}) {
    const std::string path = options.root + sub;
    if (mkdir(path.c_str(), 0755) != 0 && errno != EEXIST) return ErrnoStatus(errno, "mkdir " + path);
  }
  auto mux = StdioMux::Create(std::move(stdio), {.persistent = persistent, .early_bytes = kMaxEarlyBytes});
  return std::unique_ptr<Agent>(
      new Agent(std::move(options), std::move(mux), modules, monitor, processes, std::move(on_shutdown)));
}

Agent::Agent(AgentOptions options, std::unique_ptr<StdioMux> mux, ModuleLoader& modules,
             DeviceMonitor& monitor, ProcessTable& processes, std::function<void()> on_shutdown)
    : options_(std::move(options)),
      mux_(std::move(mux)),
      modules_(modules),
      monitor_(monitor),
      on_shutdown_(std::move(on_shutdown)),
      crun_(processes, options_.crun, options_.root),
      layers_(options_.root, modules, monitor, Sysfs()),
      disks_(modules, monitor, Sysfs()),
      volumes_(options_.root, &disks_),
      sockets_(options_.root, *mux_),
      containers_(ContainerTableOptions{options_.root, options_.cgroup_mount}, *mux_, processes, layers_,
                  volumes_, modules, crun_),
      kept_files_({.directory = options_.root + "/volumes"}) {}

absl::StatusOr<HelloResponse> Agent::Hello(const HelloRequest& request) {
  if (request.protocol_version() != kProtocolVersion) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "the host speaks agent protocol {}, this agent {}", request.protocol_version(),
                      kProtocolVersion);
  }
  if (options_.owns_machine) RETURN_IF_ERROR(SeedRandom(request.random_seed()));
  HelloResponse response;
  response.set_protocol_version(kProtocolVersion);
  response.set_agent_version(Version());
  response.set_mem_total_bytes(MemTotalBytes());
  response.set_agent_started_boot_seconds(options_.started_boot_seconds);
  return response;
}

absl::StatusOr<AdjustClockResponse> Agent::AdjustClock(const AdjustClockRequest& request) {
  if (options_.owns_machine && request.offset_nanos() != 0)
    RETURN_IF_ERROR(clock_.Adjust(std::chrono::nanoseconds(request.offset_nanos())));
  AdjustClockResponse response;
  response.set_unix_nanos(UnixNanos(Clock::Real().Wall()));
  return response;
}

absl::Status Agent::Configure(const ConfigureSandboxRequest& request) {
  RETURN_IF_ERROR(CheckSafeId(request.sandbox_id(), "sandbox id"));
  const std::string content = request.SerializeAsString();
  MutexLock lock(configure_mutex_);
  if (content == configured_) return absl::OkStatus();
  if (!sandbox_id_.empty() && sandbox_id_ != request.sandbox_id()) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "this guest is sandbox {}", sandbox_id_);
  }
  sandbox_id_ = request.sandbox_id();
  if (options_.owns_machine) {
    RETURN_IF_ERROR(SetHostname(request.hostname()));
    RETURN_IF_ERROR(ConfigureNetwork(request));
    for (const auto& [name, value] : request.sysctls()) RETURN_IF_ERROR(SetSysctl(name, value));
  }
  RETURN_IF_ERROR(MountTmpfs(options_.root + "/shm", kShmBytes, 01777));
  RETURN_IF_ERROR(WritePodFiles(request));
  if (!request.shared_tag().empty()) {
    RETURN_IF_ERROR(modules_.Load("virtio-26"));
    RETURN_IF_ERROR(MountVirtiofs(request.shared_tag(), options_.root + "/shared"));
  }
  configured_ = content;
  return absl::OkStatus();
}

// Into the same inodes when it is done again: containers have them mounted.
absl::Status Agent::WritePodFiles(const ConfigureSandboxRequest& request) {
  if (request.files_size() == 0) return absl::OkStatus();
  if (request.files_size() > kMaxPodFiles)
    return InvalidArgument("{} files of the pod: at most {}", request.files_size(), kMaxPodFiles);
  const std::string directory = options_.root + "/etc";
  RETURN_IF_ERROR(MountTmpfs(directory, kPodFilesBytes, 0755));
  for (const PodFile& file : request.files()) {
    RETURN_IF_ERROR(CheckSafeId(file.name(), "name of a file of the pod"));
    if (file.content().size() > kMaxPodFileBytes) {
      return InvalidArgument("file {} of the pod: {} bytes, at most {}", file.name(), file.content().size(),
                             kMaxPodFileBytes);
    }
    RETURN_IF_ERROR(WriteRegularFile(directory + "/" + file.name(), file.content(), 0644));
  }
  return absl::OkStatus();
}

absl::Status Agent::ConfigureNetwork(const ConfigureSandboxRequest& request) {
  if (request.interfaces_size() > kMaxInterfaces || request.routes_size() > kMaxRoutes ||
      request.neighbors_size() > kMaxNeighbors) {
    return InvalidArgument("{} interfaces, {} routes, {} neighbours: more than a pod has",
                           request.interfaces_size(), request.routes_size(), request.neighbors_size());
  }
  ASSIGN_OR_RETURN(Network network, Network::Open());
  RETURN_IF_ERROR(network.LinkUp("lo"));
  if (request.interfaces_size() > 0) RETURN_IF_ERROR(modules_.Load("virtio-1"));
  for (const Interface& interface : request.interfaces()) {
    RETURN_IF_ERROR(CheckInterfaceName(interface.name()));
    const std::string mac = LowerCase(interface.mac());
    RETURN_IF_ERROR(ParseMac(mac).status());
    auto found = monitor_.WaitFor([&] { return Sysfs().FindNetDevice(mac); }, kNetDeviceTimeout);
    if (!found.ok()) return found.status();
    RETURN_IF_ERROR(network.Rename(*found, interface.name()));
    // Also the link-local address is usable at once; a kernel without IPv6 has no such file.
    WriteKernelFile(fmt::format("/proc/sys/net/ipv6/conf/{}/accept_dad", interface.name()), "0")
        .IgnoreError();
    if (interface.mtu() > 0) RETURN_IF_ERROR(network.SetMtu(interface.name(), interface.mtu()));
    RETURN_IF_ERROR(network.LinkUp(interface.name()));
    for (const std::string& text : interface.addresses()) {
      ASSIGN_OR_RETURN(const IpAddress address, ParseIp(text));
      RETURN_IF_ERROR(Annotate(network.AddAddress(interface.name(), address), text));
    }
  }
  for (const Neighbor& neighbor : request.neighbors()) {
    ASSIGN_OR_RETURN(const IpAddress address, ParseIp(neighbor.address()));
    ASSIGN_OR_RETURN(const std::vector<uint8_t> mac, ParseMac(neighbor.mac()));
    RETURN_IF_ERROR(network.AddNeighbor(neighbor.device(), address, mac));
  }
  // A gateway must be reachable by a route that is there already: the direct ones go first.
  std::vector<const Route*> routes;
  for (const Route& route : request.routes()) routes.push_back(&route);
  std::stable_partition(routes.begin(), routes.end(),
                        [](const Route* route) { return route->gateway().empty(); });
  for (const Route* route : routes) {
    if (route->scope() > 255) return InvalidArgument("route scope {}: over 255", route->scope());
    RETURN_IF_ERROR(network.AddRoute({route->destination(), route->gateway(), route->source(),
                                      route->device(), static_cast<uint8_t>(route->scope()), route->onlink(),
                                      route->ipv6(), route->metric()}));
  }
  return absl::OkStatus();
}

absl::StatusOr<MountLayersResponse> Agent::MountLayers(const MountLayersRequest& request) {
  MountLayersResponse response;
  for (const Layer& layer : request.layers()) {
    ASSIGN_OR_RETURN(*response.add_results(), layers_.Mount(layer));
  }
  return response;
}

absl::Status Agent::UnmountLayers(const UnmountLayersRequest& request) {
  absl::Status status;
  for (const std::string& id : request.ids()) status.Update(layers_.Unmount(id));
  return status;
}

void Agent::RegisterMachine(ttrpc::Server& server) {
  using ttrpc::CallContext;
  server.Handle(kHello, [this](const CallContext&, const HelloRequest& request) { return Hello(request); });
  server.Handle(kAdjustClock, [this](const CallContext&, const AdjustClockRequest& request) {
    return AdjustClock(request);
  });
  server.Handle(kConfigureSandbox, [this](const CallContext&, const ConfigureSandboxRequest& request) {
    return Done(Configure(request));
  });
  server.Handle(kMountLayers, [this](const CallContext&, const MountLayersRequest& request) {
    return MountLayers(request);
  });
  server.Handle(kUnmountLayers, [this](const CallContext&, const UnmountLayersRequest& request) {
    return Done(UnmountLayers(request));
  });
  server.Handle(kMountVolume, [this](const CallContext&, const MountVolumeRequest& request) {
    return Done(volumes_.Mount(request));
  });
  server.Handle(kUnmountVolume, [this](const CallContext&, const UnmountVolumeRequest& request) {
    absl::Status status = volumes_.Unmount(request.name());
    status.Update(kept_files_.Remove(request.name()));
    return Done(status);
  });
  server.Handle(kOfferSocket, [this](const CallContext&, const OfferSocketRequest& request) {
    return Done(sockets_.Offer(request));
  });
  server.Handle(
      kAcceptSocket,
      [this](const CallContext&, const SocketRequest& request) -> absl::StatusOr<AcceptSocketResponse> {
        AcceptSocketResponse response;
        ASSIGN_OR_RETURN(const uint64_t connection, sockets_.Accept(request.name()));
        response.set_connection(connection);
        return response;
      });
  server.Handle(kJoinSocket, [this](const CallContext&, const JoinSocketRequest& request) {
    return Done(sockets_.Join(request));
  });
  server.Handle(kGuestInfo, [](const CallContext&, const Empty&) -> absl::StatusOr<GuestInfoResponse> {
    return GuestInfo();
  });
  server.Handle(
      kSetVcpus,
      [this](const CallContext&, const SetVcpusRequest& request) -> absl::StatusOr<SetVcpusResponse> {
        if (!options_.owns_machine)
          return absl::FailedPreconditionError("this agent does not own its machine");
        SetVcpusResponse response;
        ASSIGN_OR_RETURN(const uint32_t online, SetVcpus(request.vcpus()));
        response.set_online(online);
        return response;
      });
  server.Handle(kShutdown, [this](const CallContext& context, const Empty&) -> absl::StatusOr<Empty> {
    *context.after_answer = on_shutdown_;
    return Empty();
  });
}

void Agent::RegisterFiles(ttrpc::Server& server) {
  using ttrpc::CallContext;
  server.Handle(kPutFiles, [this](const CallContext&, const PutFilesRequest& request) {
    return Done(kept_files_.Put(request));
  });
  server.Handle(kReadFile, [this](const CallContext&, const ReadFileRequest& request) {
    return kept_files_.Read(request.volume());
  });
}

void Agent::RegisterContainers(ttrpc::Server& server) {
  using ttrpc::CallContext;
  server.Handle(kCreateContainer,
                [this](const CallContext&,
                       const CreateContainerRequest& request) -> absl::StatusOr<CreateContainerResponse> {
                  clock_.ContainersMade();
                  ASSIGN_OR_RETURN(const pid_t pid, containers_.Create(request));
                  CreateContainerResponse response;
                  response.set_pid(static_cast<uint32_t>(pid));
                  return response;
                });
  server.Handle(kUpdateContainer, [this](const CallContext&, const UpdateContainerRequest& request) {
    return Done(containers_.Update(request.container_id(), request.resources_json()));
  });
  server.Handle(kContainerStats,
                [this](const CallContext&, const ProcessRequest& request) -> absl::StatusOr<ContainerStats> {
                  ASSIGN_OR_RETURN(const Cgroup cgroup, containers_.FindCgroup(request.container_id()));
                  return cgroup.Stats();
                });
  server.Handle(kPids,
                [this](const CallContext&, const ProcessRequest& request) -> absl::StatusOr<PidsResponse> {
                  ASSIGN_OR_RETURN(const Cgroup cgroup, containers_.FindCgroup(request.container_id()));
                  ASSIGN_OR_RETURN(const std::vector<uint32_t> pids, cgroup.Pids());
                  PidsResponse response;
                  for (const uint32_t pid : pids) response.add_pids(pid);
                  return response;
                });
  const auto freeze = [this, &server](const ttrpc::Method<ProcessRequest, Empty>& method, bool frozen) {
    server.Handle(method,
                  [this, frozen](const CallContext&, const ProcessRequest& request) -> absl::StatusOr<Empty> {
                    ASSIGN_OR_RETURN(const Cgroup cgroup, containers_.FindCgroup(request.container_id()));
                    return Done(cgroup.Freeze(frozen));
                  });
  };
  freeze(kPauseContainer, true);
  freeze(kResumeContainer, false);
}

void Agent::RegisterProcesses(ttrpc::Server& server) {
  using ttrpc::CallContext;
  server.Handle(kExecCreate, [this](const CallContext&, const ExecCreateRequest& request) {
    return Done(containers_.CreateExec(request));
  });
  server.Handle(
      kStartProcess,
      [this](const CallContext&, const ProcessRequest& request) -> absl::StatusOr<StartProcessResponse> {
        ASSIGN_OR_RETURN(const pid_t pid, containers_.Start(request.container_id(), request.exec_id()));
        StartProcessResponse response;
        response.set_pid(static_cast<uint32_t>(pid));
        return response;
      });
  server.Handle(kSignalProcess, [this](const CallContext&, const SignalProcessRequest& request) {
    return Done(containers_.Signal(request.container_id(), request.exec_id(),
                                   static_cast<int>(std::min(request.signal(), 65U)), request.all()));
  });
  server.Handle(
      kWaitProcess,
      [this](const CallContext&, const ProcessRequest& request) -> absl::StatusOr<WaitProcessResponse> {
        ASSIGN_OR_RETURN(const TaskExit exit, containers_.Wait(request.container_id(), request.exec_id()));
        WaitProcessResponse response;
        response.set_exit_status(static_cast<uint32_t>(exit.exit.status));
        response.set_oom_killed(exit.oom_killed);
        return response;
      });
  server.Handle(
      kResizeTerminal,
      [this](const CallContext&, const ResizeTerminalRequest& request) -> absl::StatusOr<Empty> {
        if (request.width() > 65535 || request.height() > 65535) {
          return InvalidArgument("terminal of {} by {}: over 65535", request.width(), request.height());
        }
        ASSIGN_OR_RETURN(const TaskRef task, containers_.FindTask(request.container_id(), request.exec_id()));
        return Done(
            task->Resize(static_cast<uint16_t>(request.width()), static_cast<uint16_t>(request.height())));
      });
  server.Handle(kDeleteProcess, [this](const CallContext&, const ProcessRequest& request) {
    return Done(containers_.Delete(request.container_id(), request.exec_id()));
  });
}

void Agent::Register(ttrpc::Server& server) {
  RegisterMachine(server);
  RegisterFiles(server);
  RegisterContainers(server);
  RegisterProcesses(server);
}

void Agent::TearDown() {
  containers_.DeleteAll();
  sockets_.Close();
  layers_.UnmountAll();
  volumes_.UnmountAll();
  kept_files_.RemoveAll();
  for (const char* sub : {"/shared", "/shm", "/etc"}) {
    const std::string path = options_.root + sub;
    if (umount2(path.c_str(), UMOUNT_NOFOLLOW) != 0 && errno != EINVAL && errno != ENOENT) {
      LogWarning("{}", Message(ErrnoStatus(errno, "unmount " + path)));
      umount2(path.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH);
    }
  }
}

}  // namespace lamina::guest
