// What the host and a guest's agent have agreed on: names, paths, limits, and the agent's methods. The
// messages, and what each method promises, stand in proto/agent.proto.
//
//   ASSIGN_OR_RETURN(const auto created, ttrpc::Call(agent, guest::kCreateContainer, request, seconds(30)));
//   server.Handle(guest::kCreateContainer, [](const CallContext&, const CreateContainerRequest& request) …);
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/ttrpc/method.h"

namespace lamina::agent::v1 {
class AcceptSocketResponse;
class AdjustClockRequest;
class AdjustClockResponse;
class ConfigureSandboxRequest;
class ContainerStats;
class CreateContainerRequest;
class CreateContainerResponse;
class Empty;
class ExecCreateRequest;
class GuestInfoResponse;
class HelloRequest;
class HelloResponse;
class JoinSocketRequest;
class MountLayersRequest;
class MountLayersResponse;
class MountVolumeRequest;
class OfferSocketRequest;
class PidsResponse;
class ProcessRequest;
class PutFilesRequest;
class ReadFileRequest;
class ReadFileResponse;
class ResizeTerminalRequest;
class SetVcpusRequest;
class SetVcpusResponse;
class SignalProcessRequest;
class SocketRequest;
class StartProcessResponse;
class UnmountLayersRequest;
class UnmountVolumeRequest;
class UpdateContainerRequest;
class WaitProcessResponse;
}  // namespace lamina::agent::v1

namespace lamina::guest {

// Both sides send it in Hello, and each refuses another.
inline constexpr uint32_t kProtocolVersion = 3;

// The virtio-serial ports, and the virtiofs that holds the pod's volumes.
inline constexpr char kRpcPort[] = "lamina.rpc";
inline constexpr char kStdioPort[] = "lamina.stdio";
inline constexpr char kSharedTag[] = "lamina";

// Where things are in the guest.
inline constexpr char kGuestDirectory[] = "/run/lamina";
inline constexpr char kSharedDirectory[] = "/run/lamina/shared";  // the virtiofs
inline constexpr char kShmDirectory[] = "/run/lamina/shm";        // a tmpfs, shared by the pod's containers
inline constexpr char kPodFilesDirectory[] =
    "/run/lamina/etc";  // a tmpfs with the pod's files, if it has any
inline constexpr char kSocketsDirectory[] = "/run/lamina/sockets";  // <name> in it, for sockets of the host
inline constexpr char kVolumesDirectory[] = "/run/lamina/volumes";  // <volume name> in it
// In the folder of a volume whose files the guest keeps: the volume itself, a folder or a file.
inline constexpr char kKeptFilesName[] = "data";
inline constexpr char kLayersDirectory[] = "/run/lamina/layers";  // <layer id> in it

// Limits of the agent: what is over one of them is refused.
inline constexpr size_t kMaxContainers = 256;
inline constexpr size_t kMaxExecsPerContainer = 256;
inline constexpr size_t kMaxLayersPerContainer = 500;  // the kernel's own bound (OVL_MAX_STACK)
inline constexpr size_t kMaxHostSockets = 64, kMaxWaitingConnections = 16;  // the latter of one socket
inline constexpr size_t kMaxVolumes = 1024;
inline constexpr int kMaxVolumeFolders = 64;  // of one request
inline constexpr int kMaxInterfaces = 32;
inline constexpr int kMaxRoutes = 1024;
inline constexpr int kMaxNeighbors = 1024;
inline constexpr int kMaxSpecDepth = 64;  // levels of nesting in a spec
inline constexpr size_t kMaxRandomSeedBytes = 64;
inline constexpr size_t kMaxMountsBytes = 64 * 1024;  // GuestInfo's table is cut there
inline constexpr uint64_t kShmBytes = 64ULL << 20;
inline constexpr int kMaxPodFiles = 8;
inline constexpr size_t kMaxPodFileBytes = 256 * 1024;
inline constexpr uint64_t kPodFilesBytes = 4ULL << 20;  // what containers may let them grow to, all together

// Of a volume whose files the guest keeps: bytes of content, files, entries of all kinds, parts of a path.
inline constexpr uint64_t kMaxKeptBytes = 8ULL << 20;
inline constexpr uint64_t kMaxKeptTotalBytes = 64ULL << 20;  // of all of them
inline constexpr size_t kMaxKeptFiles = 4096;
inline constexpr size_t kMaxKeptEntries = 3 * kMaxKeptFiles;  // each file with a link to it, and folders
inline constexpr size_t kMaxKeptDepth = 32;
inline constexpr size_t kMaxPathBytes = 4095;
inline constexpr size_t kMaxReadFileBytes = 64 * 1024;

// Limits of the stdio port, for both sides: what a sender may have under way on a stream, and in a frame.
inline constexpr size_t kStdioWindowBytes = 256 * 1024;
inline constexpr size_t kStdioMaxFrameBytes = 64 * 1024;
// What the guest keeps of input that comes before its process is there: a window for each of 1024.
inline constexpr size_t kMaxEarlyBytes = 1024 * kStdioWindowBytes;

inline constexpr char kAgentService[] = "lamina.agent.v1.Agent";

// The machine.
inline constexpr ttrpc::Method<agent::v1::HelloRequest, agent::v1::HelloResponse> kHello{kAgentService,
                                                                                         "Hello"};
inline constexpr ttrpc::Method<agent::v1::AdjustClockRequest, agent::v1::AdjustClockResponse> kAdjustClock{
    kAgentService, "AdjustClock"};
inline constexpr ttrpc::Method<agent::v1::ConfigureSandboxRequest, agent::v1::Empty> kConfigureSandbox{
    kAgentService, "ConfigureSandbox"};
inline constexpr ttrpc::Method<agent::v1::MountLayersRequest, agent::v1::MountLayersResponse> kMountLayers{
    kAgentService, "MountLayers"};
inline constexpr ttrpc::Method<agent::v1::UnmountLayersRequest, agent::v1::Empty> kUnmountLayers{
    kAgentService, "UnmountLayers"};
inline constexpr ttrpc::Method<agent::v1::MountVolumeRequest, agent::v1::Empty> kMountVolume{kAgentService,
                                                                                             "MountVolume"};
inline constexpr ttrpc::Method<agent::v1::UnmountVolumeRequest, agent::v1::Empty> kUnmountVolume{
    kAgentService, "UnmountVolume"};
inline constexpr ttrpc::Method<agent::v1::PutFilesRequest, agent::v1::Empty> kPutFiles{kAgentService,
                                                                                       "PutFiles"};
inline constexpr ttrpc::Method<agent::v1::ReadFileRequest, agent::v1::ReadFileResponse> kReadFile{
    kAgentService, "ReadFile"};
inline constexpr ttrpc::Method<agent::v1::Empty, agent::v1::GuestInfoResponse> kGuestInfo{kAgentService,
                                                                                          "GuestInfo"};
inline constexpr ttrpc::Method<agent::v1::SetVcpusRequest, agent::v1::SetVcpusResponse> kSetVcpus{
    kAgentService, "SetVcpus"};
inline constexpr ttrpc::Method<agent::v1::Empty, agent::v1::Empty> kShutdown{kAgentService, "Shutdown"};

inline constexpr ttrpc::Method<agent::v1::OfferSocketRequest, agent::v1::Empty> kOfferSocket{kAgentService,
                                                                                             "OfferSocket"};
inline constexpr ttrpc::Method<agent::v1::SocketRequest, agent::v1::AcceptSocketResponse> kAcceptSocket{
    kAgentService, "AcceptSocket"};
inline constexpr ttrpc::Method<agent::v1::JoinSocketRequest, agent::v1::Empty> kJoinSocket{kAgentService,
                                                                                           "JoinSocket"};

// A container as a whole.
inline constexpr ttrpc::Method<agent::v1::CreateContainerRequest, agent::v1::CreateContainerResponse>
    kCreateContainer{kAgentService, "CreateContainer"};
inline constexpr ttrpc::Method<agent::v1::UpdateContainerRequest, agent::v1::Empty> kUpdateContainer{
    kAgentService, "UpdateContainer"};
inline constexpr ttrpc::Method<agent::v1::ProcessRequest, agent::v1::ContainerStats> kContainerStats{
    kAgentService, "ContainerStats"};
inline constexpr ttrpc::Method<agent::v1::ProcessRequest, agent::v1::PidsResponse> kPids{kAgentService,
                                                                                         "Pids"};
inline constexpr ttrpc::Method<agent::v1::ProcessRequest, agent::v1::Empty> kPauseContainer{kAgentService,
                                                                                            "PauseContainer"};
inline constexpr ttrpc::Method<agent::v1::ProcessRequest, agent::v1::Empty> kResumeContainer{
    kAgentService, "ResumeContainer"};

// Its processes.
inline constexpr ttrpc::Method<agent::v1::ExecCreateRequest, agent::v1::Empty> kExecCreate{kAgentService,
                                                                                           "ExecCreate"};
inline constexpr ttrpc::Method<agent::v1::ProcessRequest, agent::v1::StartProcessResponse> kStartProcess{
    kAgentService, "StartProcess"};
inline constexpr ttrpc::Method<agent::v1::SignalProcessRequest, agent::v1::Empty> kSignalProcess{
    kAgentService, "SignalProcess"};
inline constexpr ttrpc::Method<agent::v1::ProcessRequest, agent::v1::WaitProcessResponse> kWaitProcess{
    kAgentService, "WaitProcess"};
inline constexpr ttrpc::Method<agent::v1::ResizeTerminalRequest, agent::v1::Empty> kResizeTerminal{
    kAgentService, "ResizeTerminal"};
inline constexpr ttrpc::Method<agent::v1::ProcessRequest, agent::v1::Empty> kDeleteProcess{kAgentService,
                                                                                           "DeleteProcess"};

}  // namespace lamina::guest
