// Growing and shrinking a running VM: vCPUs, and memory by virtio-mem. What is given is never taken by force:
// vCPUs are taken offline by the guest and stay plugged (QEMU 7.2 crashes on the next memory operation after
// a vCPU's removal), memory comes back as the guest frees it.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "vmm/qmp_client.h"

namespace lamina::vmm {

// The guest's kernel plugs in steps of 4 MiB, and uses whole memory blocks of 128 MiB of address space.
inline constexpr uint64_t kHotplugStep = 4ULL << 20, kHotplugBlock = 128ULL << 20;

// A vCPU's place as query-hotpluggable-cpus lists it.
struct VcpuSlot {
  std::string properties;  // JSON object: driver and topology, ready for device_add but for the id
  bool plugged = false;
};
// Internal when it is not QEMU's answer. Pure.
absl::StatusOr<std::vector<VcpuSlot>> ParseVcpuSlots(const std::string& json);

// How much may be plugged next on the way to `wanted`: new memory needs 1/64 of its size for page structs
// in what the guest has already, so a step is at most 48-fold. Pure; at least one step of progress.
uint64_t NextMemoryStep(uint64_t boot_bytes, uint64_t plugged_bytes, uint64_t wanted_bytes);

struct HotMemory {
  uint64_t requested = 0;  // what the guest was asked to hold, bytes
  uint64_t plugged = 0;    // what it holds
  // What counts for the host: memory stays the guest's until it has given it back.
  uint64_t counted() const { return requested > plugged ? requested : plugged; }
};

// The seam. Thread-safe; callers decide who resizes.
class Resizer {
 public:
  virtual ~Resizer() = default;

  // Plugs until `vcpus` are there; more are left. Answers how many there are. OutOfRange: the VM has fewer
  // places. The guest brings them online.
  virtual absl::StatusOr<uint32_t> PlugVcpus(uint32_t vcpus) = 0;

  virtual absl::StatusOr<HotMemory> Memory() = 0;
  // Asks the guest for exactly `bytes` (whole steps) and does not wait. For shrinking, and to give up growth.
  virtual absl::Status RequestMemory(uint64_t bytes) = 0;
  // Asks step by step and waits until the guest holds at least `bytes`. DeadlineExceeded names what it
  // holds; the request stands then.
  virtual absl::Status GrowMemory(uint64_t bytes, std::chrono::milliseconds timeout) = 0;
};

// Works on the VM behind `qmp`, which must outlive it.
class QmpResizer : public Resizer {
 public:
  // `boot_bytes`: the VM's memory without virtio-mem.
  QmpResizer(QmpClient& qmp, uint64_t boot_bytes) : qmp_(qmp), boot_bytes_(boot_bytes) {}

  absl::StatusOr<uint32_t> PlugVcpus(uint32_t vcpus) override;
  absl::StatusOr<HotMemory> Memory() override;
  absl::Status RequestMemory(uint64_t bytes) override;
  absl::Status GrowMemory(uint64_t bytes, std::chrono::milliseconds timeout) override;

 private:
  absl::StatusOr<uint64_t> Property(const char* name);

  QmpClient& qmp_;
  const uint64_t boot_bytes_;
};

}  // namespace lamina::vmm
