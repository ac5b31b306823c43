// /etc/lamina/config.toml. config/lamina.toml documents each option with its unit, default and reason.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/units.h"

namespace lamina {

// Numbers of users, both ends among them; empty where the last is 0.
struct UserRange {
  uint32_t first = 0, last = 0;
  bool empty() const { return last == 0; }
  bool operator==(const UserRange&) const = default;
};

struct Config {
  struct Paths {
    std::string run_dir = "/run/lamina";
    std::string state_dir = "/var/lib/lamina";
    std::string guest_dir = "/usr/lib/lamina/guest";  // vmlinux, initramfs.img
  } paths;
  struct Sizing {
    int64_t overhead_nano_cpus = 250'000'000;
    uint64_t overhead_memory_bytes = 96 * kMiB;
    int64_t default_nano_cpus = 1'000'000'000;
    uint64_t default_memory_bytes = 256 * kMiB;
    uint32_t max_vcpus = 0;         // 0: the host's CPUs
    uint64_t max_memory_bytes = 0;  // 0: the host's memory
    uint64_t min_memory_bytes = 96 * kMiB;
    std::vector<std::string> allowed_annotations;
    std::string mode = "dynamic";       // static, dynamic
    uint32_t hotplug_vcpus = 7;         // dynamic: a VM may grow by as many
    uint64_t hotplug_memory_bytes = 0;  // dynamic: and by as much; 0: up to the maximum
    std::string cgroup_fit = "warn";    // warn, refuse, off
  } sizing;
  struct Hypervisor {
    std::string qemu = "qemu-system-x86_64";
    std::string accel = "auto";  // auto, kvm, tcg
    std::string firmware = "/usr/share/qemu/qboot.rom";
    std::string virtiofsd = "/usr/lib/qemu/virtiofsd";
    UserRange users = {2'000'000'000, 2'000'009'999};
    uint64_t boot_timeout_seconds = 60;
    uint32_t hotplug_ports = 8;
    uint64_t vmm_overhead_memory_bytes = 96 * kMiB;  // host side of one VM, counted in its claim
    std::string kernel_args;
  } hypervisor;
  struct Layers {
    bool vpmem = true;
    bool scsi_verity = false;
    std::string policy = "dense";       // classic, dense
    std::string sharing = "namespace";  // pod, namespace, node
    uint64_t arena_bytes = 1 * kGiB;
    uint64_t max_layer_bytes = 512 * kMiB;
    uint32_t max_arenas_per_pod = 4;
    uint64_t idle_budget_bytes = 4 * kGiB;
    uint64_t disk_budget_bytes = 0;   // 0: what the reserve leaves
    uint64_t disk_reserve_bytes = 0;  // 0: a twentieth of the file system, at most 4 GiB
    uint64_t convert_timeout_seconds = 600;
    uint64_t convert_memory_bytes = 4 * kGiB;
    uint64_t convert_size_bytes = 64 * kGiB;
  } layers;
  struct Memory {
    uint64_t capacity_bytes = 0;  // 0: MemTotal
    uint64_t reserve_bytes = 512 * kMiB;
    uint64_t carve_out_bytes = 0;
    uint64_t min_available_bytes = 256 * kMiB;  // below this, beyond what is promised, nothing is granted
    bool balloon = true;
    uint64_t balloon_floor_bytes = 128 * kMiB;  // of its own memory each guest keeps at least
    uint64_t balloon_margin_bytes = 64 * kMiB;  // beyond what it was seen to use
  } memory;
  struct Volumes {
    std::string root = "disk";  // disk, memory
    uint64_t root_size_bytes = 20 * kGiB;
    std::string empty_dir = "disk";  // disk, shared
    uint64_t empty_dir_size_bytes = 20 * kGiB;
    std::vector<std::string>
        sockets;  // of the node, that pods may have mounted; one that ends in "/": all in it
  } volumes;
  struct Laminad {
    std::string rest_address = "127.0.0.1:9477";
    std::string rest_tls_certificate, rest_tls_key;  // PEM files, both or neither; empty: plain HTTP
    std::string rest_token_file;                     // empty: no token is asked for
    std::string log_level = "info";                  // debug, info, warning, error
  } laminad;

  std::string shim_socket() const { return paths.run_dir + "/shim.sock"; }     // shim -> laminad, ttrpc
  std::string grpc_socket() const { return paths.run_dir + "/laminad.sock"; }  // CLI -> laminad, gRPC
  std::string kernel() const { return paths.guest_dir + "/vmlinux"; }
  std::string initramfs() const { return paths.guest_dir + "/initramfs.img"; }
};

// What [volumes] may say of a disk's size.
inline constexpr uint64_t kMinDiskBytes = 64 * kMiB, kMaxDiskBytes = 8 * kTiB;

// InvalidArgument names the key and its line: unknown keys (with the nearest known one), wrong types, values
// out of range.
absl::StatusOr<Config> ParseConfig(std::string_view text, const std::string& name);

// Reads and parses `path`. NotFound when it does not exist.
absl::StatusOr<Config> LoadConfig(const std::string& path);

// $LAMINA_CONFIG or /etc/lamina/config.toml; without either file the defaults.
absl::StatusOr<Config> LoadDefaultConfig();

}  // namespace lamina
