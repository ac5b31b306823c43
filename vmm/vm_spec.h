// A pod's machine as plain values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "guest/protocol/contract.h"

namespace lamina::vmm {

struct ArenaDevice {
  std::string id;  // [A-Za-z0-9_.-], at most 64
  std::string path;
  uint64_t bytes = 0;
};

enum class Accel { kKvm, kTcg };
// As QEMU and the config name it: "kvm", "tcg".
inline const char* AccelName(Accel accel) { return accel == Accel::kKvm ? "kvm" : "tcg"; }

// What an emulated guest's QEMU keeps of translated code, at most.
inline constexpr uint64_t kTranslatedCodeBytes = 256ULL << 20;

struct VmSpec {
  std::string name;  // sandbox id; shown by ps
  std::string qemu = "qemu-system-x86_64";
  Accel accel = Accel::kTcg;
  uint32_t tsc_khz = 0;  // the host's, which an emulated guest need not measure then; 0: unknown
  std::string firmware, kernel, initramfs, extra_kernel_args;
  uint32_t vcpus = 1;
  uint32_t max_vcpus = 0;  // can be plugged while it runs; 0: as many as at boot
  uint64_t memory_bytes = 0;
  uint64_t max_hot_memory_bytes = 0;  // virtio-mem, empty at boot; multiple of 128 MiB, 0: no such device
  // Where the guest's memory lies, that of the boot and virtio-mem's: on one NUMA node alone, or evenly on
  // several; ascending, at most 127. Empty: anywhere.
  std::vector<uint32_t> numa_nodes;
  uint64_t hotplug_bytes = 0;  // address space for arenas attached later
  uint32_t hotplug_ports = 8;  // PCIe root ports for arenas and SCSI controllers, at most 64
  std::string runtime_dir;     // sockets qmp.sock, rpc.sock, stdio.sock (107 bytes a path); the logs
  std::vector<ArenaDevice> boot_arenas;  // at most 8
  std::string virtiofs_socket;           // empty: no shared directory
  std::string virtiofs_tag = guest::kSharedTag;
  int tap_fd = -1;  // descriptor number in QEMU, qemu_command.h; -1: no network
  std::string mac;
};

inline std::string QmpSocket(const std::string& runtime_dir) { return runtime_dir + "/qmp.sock"; }
inline std::string RpcSocket(const std::string& runtime_dir) { return runtime_dir + "/rpc.sock"; }
inline std::string StdioSocket(const std::string& runtime_dir) { return runtime_dir + "/stdio.sock"; }
inline std::string QemuLog(const std::string& runtime_dir) { return runtime_dir + "/qemu.log"; }
inline std::string VirtiofsdLog(const std::string& runtime_dir) { return runtime_dir + "/virtiofsd.log"; }

// The virtio-mem device in QEMU's object tree.
inline constexpr char kHotMemoryPath[] = "/machine/peripheral/hot-memory";

}  // namespace lamina::vmm
