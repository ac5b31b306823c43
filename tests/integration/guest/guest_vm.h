// A guest under QEMU with an arena, a SCSI controller, a network device and a shared directory; its argv is
// made by hand here, so that the guest is tested without the hypervisor module.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ttrpc/client.h"
#include "guest/protocol/contract.h"
#include "guest/protocol/stdio_mux.h"
#include "proto/agent.pb.h"

namespace lamina::guest {

inline constexpr char kPmemPath[] = "04.0/00.0";
inline constexpr char kScsiPath[] = "05.0";
inline constexpr char kMac[] = "02:42:0a:01:02:03";

struct VmOptions {
  int memory_mib = 256;
  int max_vcpus = 1;
  bool devices = true;  // arena, SCSI, network, shared directory
};

struct DiskImage {
  std::string path;
  uint64_t bytes = 0;
};

class GuestVm {
 public:
  static absl::StatusOr<std::unique_ptr<GuestVm>> Boot(const VmOptions& options);
  // The one that most tests share; booted when first asked for, ended with the program.
  static GuestVm& Shared();
  ~GuestVm();

  ttrpc::Client& client() { return *client_; }
  StdioMux& mux() { return *mux_; }
  const agent::v1::HelloResponse& hello() const { return hello_; }
  double boot_seconds() const { return boot_seconds_; }
  const std::string& directory() const { return directory_; }
  pid_t virtiofsd() const { return virtiofsd_; }
  std::string shared_directory() const { return directory_ + "/shared"; }
  uint32_t NewStream() { return ++streams_; }

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(const ttrpc::Method<Request, Response>& method, const Request& request,
                                std::chrono::nanoseconds timeout = std::chrono::seconds(60)) {
    return ttrpc::Call(*client_, method, request, timeout);
  }

  // Writes the image into the arena at the next free 4 KiB boundary.
  absl::StatusOr<agent::v1::PmemRegion> AddToArena(const DiskImage& image);
  // Plugs the image in as a SCSI disk while the guest runs, and out again.
  absl::Status PlugDisk(const DiskImage& image, uint32_t lun);
  absl::Status UnplugDisk(uint32_t lun);
  // A second arena with the image at offset 0, in the free root port at "09.0/00.0".
  absl::Status PlugArena(const DiskImage& image);
  absl::Status Qmp(const std::string& command);
  // What a host program that was killed and its successor do: both connections are dropped (the RPC one in
  // the middle of a frame), then opened anew.
  absl::Status Reconnect();
  // Blocks until QEMU has ended by itself.
  bool WaitForEnd(std::chrono::seconds timeout);

 private:
  GuestVm() = default;
  absl::Status Start(const VmOptions& options);
  absl::Status Connect();
  absl::Status ConnectPorts(std::chrono::seconds hello_timeout);

  std::string directory_;
  pid_t qemu_ = 0, virtiofsd_ = 0;
  UniqueFd qmp_;
  std::unique_ptr<ttrpc::Client> client_;
  std::unique_ptr<StdioMux> mux_;
  agent::v1::HelloResponse hello_;
  double boot_seconds_ = 0;
  uint64_t arena_used_ = 0;
  uint32_t streams_ = 0;
};

// mkfs.erofs of a directory.
absl::StatusOr<DiskImage> MakeErofs(const std::string& directory, const std::string& image);

}  // namespace lamina::guest
