// The guest as a machine: randomness, name, sysctls, vCPUs, memory figures, its end. Thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::agent::v1 {
class GuestInfoResponse;
}

namespace lamina::guest {

// Mixes the seed into the kernel's pool and credits it; at most kMaxRandomSeedBytes.
absl::Status SeedRandom(std::string_view seed);
absl::Status SetHostname(const std::string& name);

// "net.ipv4.ip_forward" (or with '/') -> "/proc/sys/net/ipv4/ip_forward". InvalidArgument for names that
// could leave /proc/sys.
absl::StatusOr<std::string> SysctlPath(std::string_view name);
absl::Status SetSysctl(std::string_view name, std::string_view value);

// Seconds of CLOCK_BOOTTIME.
double BootSeconds();
uint32_t OnlineVcpus();
// Of /proc/meminfo; 0 when it cannot be read.
uint64_t MemTotalBytes();

agent::v1::GuestInfoResponse GuestInfo();

// Brings vCPUs online or takes them offline (the highest first, never CPU 0) until `wanted` are online,
// waiting up to 3 s for hotplugged ones to appear. Answers how many are online.
absl::StatusOr<uint32_t> SetVcpus(uint32_t wanted);

// Mounts with options; OK when something is mounted there already. `mode`: of the root of the tmpfs.
absl::Status MountTmpfs(const std::string& target, uint64_t bytes, int mode);
absl::Status MountVirtiofs(const std::string& tag, const std::string& target);
bool IsMountPoint(const std::string& path);

// Ends the machine; never returns.
[[noreturn]] void PowerOff();
// From now on a fatal signal or std::terminate powers the machine off instead of letting the kernel panic
// over the death of its init.
void PowerOffWhenDying();

}  // namespace lamina::guest
