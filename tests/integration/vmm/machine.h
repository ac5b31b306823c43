// A pod's machine as the shim starts it: virtiofsd, QEMU, the agent's first answer.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ttrpc/client.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"
#include "tests/testing/temp_dir.h"
#include "vmm/hypervisor.h"
#include "vmm/virtiofsd.h"

namespace lamina::vmm {

inline constexpr char kVirtiofsd[] = "/usr/lib/qemu/virtiofsd";

// As the shim starts a VM: confined, as a user of a range of ours.
StartOptions Confined();
// The guest image, 192 MiB, 1 vCPU, 8 ports, room for 16 GiB of arenas; sockets in `dir`.
VmSpec TestSpec(const std::string& dir);

// An EROFS image of one file "content" with `text`, whole 4 KiB pages long.
absl::StatusOr<std::string> MakeLayer(const std::string& dir, const std::string& name,
                                      const std::string& text);
// A sparse arena of `bytes` with `layer` at `offset`.
ArenaDevice MakeArena(const std::string& dir, const std::string& id, uint64_t bytes, const std::string& layer,
                      uint64_t offset);
void WriteRegion(const ArenaDevice& arena, const std::string& layer, uint64_t offset);

std::string LayerId(int number);
uint64_t FileSize(const std::string& path);

class Machine {
 public:
  struct Options {
    bool shared_dir = false;
    std::vector<ArenaDevice> boot_arenas;
    uint32_t max_vcpus = 0;
    uint64_t max_hot_memory_bytes = 0;
  };
  static absl::StatusOr<std::unique_ptr<Machine>> Boot(const Options& options);
  ~Machine();

  Vm& vm() { return *vm_; }
  // Nobody here has the VM any more; whoever goes on with it ends it.
  void ForgetVm() { vm_.reset(); }
  const std::string& dir() const { return dir_.path(); }
  std::string shared_dir() const { return dir_.path() + "/shared"; }
  const agent::v1::HelloResponse& hello() const { return hello_; }
  double launch_seconds() const { return launch_seconds_; }  // until QMP answers
  double boot_seconds() const { return boot_seconds_; }      // from then until the agent answers
  const VirtiofsdProcess& virtiofsd() const { return virtiofsd_; }

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(const ttrpc::Method<Request, Response>& method, const Request& request) {
    return ttrpc::Call(*client_, method, request, std::chrono::seconds(60));
  }
  absl::StatusOr<agent::v1::LayerResult> MountPmem(int id, const std::string& pci_path, uint64_t offset,
                                                   uint64_t size);
  // `verity`: the disk's hash tree; without a root: none.
  absl::StatusOr<agent::v1::LayerResult> MountScsi(int id, const DiskPlace& place, uint64_t size,
                                                   const agent::v1::Verity& verity = {});
  static agent::v1::ScsiDisk Disk(const DiskPlace& place, uint64_t size);
  absl::Status Unmount(int id);

 private:
  Machine() = default;
  lamina::testing::TempDir dir_;
  VirtiofsdProcess virtiofsd_;
  std::unique_ptr<Vm> vm_;
  std::unique_ptr<ttrpc::Client> client_;
  agent::v1::HelloResponse hello_;
  double launch_seconds_ = 0, boot_seconds_ = 0;
};

}  // namespace lamina::vmm
