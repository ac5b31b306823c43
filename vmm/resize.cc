#include "vmm/resize.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/status.h"
#include "base/units.h"
#include "vmm/vm_spec.h"

namespace lamina::vmm {
namespace {

using nlohmann::json;
using std::chrono::steady_clock;

constexpr std::chrono::seconds kCommandTimeout{20};
constexpr std::chrono::milliseconds kFirstLook{5}, kLongestLook{100};
constexpr uint64_t kGrowthFactor = 48;

}  // namespace

absl::StatusOr<std::vector<VcpuSlot>> ParseVcpuSlots(const std::string& text) {
  const json list = json::parse(text, nullptr, false);
  const auto bad = [&] {
    return MakeStatus(absl::StatusCode::kInternal, "query-hotpluggable-cpus answered \"{:.200}\"", text);
  };
  if (!list.is_array()) return bad();
  std::vector<VcpuSlot> slots;
  for (const json& item : list) {
    if (!item.is_object()) return bad();
    const auto type = item.find("type"), topology = item.find("props");
    if (type == item.end() || !type->is_string() || topology == item.end() || !topology->is_object())
      return bad();
    json device = *topology;
    device["driver"] = *type;
    slots.push_back({device.dump(-1, ' ', false, json::error_handler_t::replace), item.contains("qom-path")});
  }
  // QEMU lists the highest place first.
  std::reverse(slots.begin(), slots.end());
  return slots;
}

uint64_t NextMemoryStep(uint64_t boot_bytes, uint64_t plugged_bytes, uint64_t wanted_bytes) {
  const uint64_t room = (boot_bytes + plugged_bytes) * kGrowthFactor / kHotplugStep * kHotplugStep;
  return std::min(wanted_bytes, plugged_bytes + std::max(room, kHotplugStep));
}

absl::StatusOr<uint32_t> QmpResizer::PlugVcpus(uint32_t vcpus) {
  ASSIGN_OR_RETURN(const std::string answer, qmp_.Execute("query-hotpluggable-cpus", "", kCommandTimeout));
  ASSIGN_OR_RETURN(const std::vector<VcpuSlot> slots, ParseVcpuSlots(answer));
  auto plugged = static_cast<uint32_t>(
      std::count_if(slots.begin(), slots.end(), [](const VcpuSlot& slot) { return slot.plugged; }));
  if (vcpus > slots.size()) {
    return MakeStatus(absl::StatusCode::kOutOfRange, "{} vCPUs do not fit a VM that has places for {}", vcpus,
                      slots.size());
  }
  for (size_t i = 0; i < slots.size() && plugged < vcpus; ++i) {
    if (slots[i].plugged) continue;
    json device = json::parse(slots[i].properties);
    device["id"] = fmt::format("vcpu-{}", i);
    RETURN_IF_ERROR(Annotate(qmp_.Execute("device_add", device.dump(), kCommandTimeout).status(),
                             fmt::format("plug vCPU {}", i)));
    ++plugged;
  }
  return plugged;
}

absl::StatusOr<uint64_t> QmpResizer::Property(const char* name) {
  const std::string what = fmt::format("{} of the VM's virtio-mem device", name);
  auto answer = qmp_.Execute(
      "qom-get", fmt::format(R"({{"path":"{}","property":"{}"}})", kHotMemoryPath, name), kCommandTimeout);
  if (!answer.ok()) return Annotate(answer.status(), what);
  const json value = json::parse(*answer, nullptr, false);
  if (!value.is_number_unsigned())
    return MakeStatus(absl::StatusCode::kInternal, "{} is \"{:.60}\"", what, *answer);
  return value.get<uint64_t>();
}

absl::StatusOr<HotMemory> QmpResizer::Memory() {
  HotMemory memory;
  ASSIGN_OR_RETURN(memory.requested, Property("requested-size"));
  ASSIGN_OR_RETURN(memory.plugged, Property("size"));
  return memory;
}

absl::Status QmpResizer::RequestMemory(uint64_t bytes) {
  return Annotate(qmp_.Execute("qom-set",
                               fmt::format(R"({{"path":"{}","property":"requested-size","value":{}}})",
                                           kHotMemoryPath, bytes),
                               kCommandTimeout)
                      .status(),
                  "ask the guest to hold " + FormatBytes(bytes) + " of virtio-mem");
}

absl::Status QmpResizer::GrowMemory(uint64_t bytes, std::chrono::milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  ASSIGN_OR_RETURN(HotMemory memory, Memory());
  std::chrono::milliseconds look = kFirstLook;
  while (memory.requested != bytes || memory.plugged < bytes) {
    const uint64_t step = NextMemoryStep(boot_bytes_, memory.plugged, bytes);
    // The end is asked for exactly; on the way nothing is ever asked back.
    if (step == bytes ? memory.requested != bytes : memory.requested < step) {
      RETURN_IF_ERROR(RequestMemory(step));
      look = kFirstLook;
    }
    ASSIGN_OR_RETURN(memory, Memory());
    if (memory.requested == bytes && memory.plugged >= bytes) break;
    if (steady_clock::now() >= deadline) {
      return MakeStatus(absl::StatusCode::kDeadlineExceeded,
                        "the guest was asked to hold {} of virtio-mem and has taken {} after {} ms",
                        FormatBytes(bytes), FormatBytes(memory.plugged), timeout.count());
    }
    std::this_thread::sleep_for(look);
    look = std::min(look * 2, kLongestLook);
  }
  return absl::OkStatus();
}

}  // namespace lamina::vmm
