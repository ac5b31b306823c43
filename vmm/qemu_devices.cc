#include "vmm/qemu_devices.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/status.h"
#include "vmm/qemu_command.h"

namespace lamina::vmm {
namespace {

using nlohmann::json;

constexpr std::chrono::seconds kCommandTimeout{20};
constexpr char kPeripherals[] = "/machine/peripheral";
constexpr uint32_t kMaxPorts = 64;

absl::StatusOr<json> Ask(QmpClient& qmp, const std::string& command, const std::string& arguments) {
  ASSIGN_OR_RETURN(const std::string answer, qmp.Execute(command, arguments, kCommandTimeout));
  return json::parse(answer, nullptr, false);
}

absl::StatusOr<json> Property(QmpClient& qmp, const std::string& path, const char* name) {
  return Ask(qmp, "qom-get", fmt::format(R"({{"path":{},"property":"{}"}})", JsonText(path), name));
}

absl::Status Odd(const std::string& path, const char* name, const json& value) {
  return MakeStatus(absl::StatusCode::kInternal, "QEMU's {} has the {} {:.100}", path, name,
                    value.dump(-1, ' ', false, json::error_handler_t::replace));
}

absl::StatusOr<std::string> Text(QmpClient& qmp, const std::string& path, const char* name) {
  ASSIGN_OR_RETURN(const json value, Property(qmp, path, name));
  if (!value.is_string()) return Odd(path, name, value);
  return value.get<std::string>();
}

absl::StatusOr<uint64_t> Number(QmpClient& qmp, const std::string& path, const char* name) {
  ASSIGN_OR_RETURN(const json value, Property(qmp, path, name));
  if (!value.is_number_unsigned()) return Odd(path, name, value);
  return value.get<uint64_t>();
}

// "/machine/peripheral/port3/port3", the bus of a root port -> 3; nothing for other buses.
std::optional<uint32_t> PortOfBus(const std::string& bus) {
  unsigned port = 0;
  int used = 0;
  const std::string last = bus.substr(bus.rfind('/') + 1);
  if (sscanf(last.c_str(), "port%u%n", &port, &used) != 1 || static_cast<size_t>(used) != last.size() ||
      port >= kMaxPorts) {
    return std::nullopt;
  }
  return port;
}

absl::StatusOr<ArenaWindow> ReadWindow(QmpClient& qmp, const std::string& path, const std::string& name,
                                       std::optional<uint32_t> port) {
  ArenaWindow window;
  // pmem-<arena>, or pmem<how many before>-<arena>; its memory is called alike.
  const size_t dash = name.find('-');
  window.arena.id = name.substr(dash + 1);
  const std::string memory = "/objects/mem" + name.substr(std::string("pmem").size());
  ASSIGN_OR_RETURN(window.arena.bytes, Number(qmp, memory, "size"));
  if (port) {
    window.pci_path = HotplugPciPath(*port);
  } else {
    ASSIGN_OR_RETURN(const uint64_t address, Number(qmp, path, "addr"));
    window.pci_path = fmt::format("{:02x}.{}", address >> 3 & 0x1f, address & 7);
  }
  return window;
}

}  // namespace

absl::StatusOr<QemuDevices> ReadDevices(QmpClient& qmp) {
  ASSIGN_OR_RETURN(const json list, Ask(qmp, "qom-list", fmt::format(R"({{"path":"{}"}})", kPeripherals)));
  if (!list.is_array()) return Odd(kPeripherals, "content", list);
  QemuDevices devices;
  for (const json& item : list) {
    if (!item.is_object() || !item.contains("name") || !item["name"].is_string())
      return Odd(kPeripherals, "entry", item);
    const auto name = item["name"].get<std::string>();
    const std::string path = fmt::format("{}/{}", kPeripherals, name);
    unsigned one = 0, two = 0;
    const bool arena = name.rfind("pmem", 0) == 0 && name.find('-') != std::string::npos;
    const bool controller = sscanf(name.c_str(), "scsi%u", &one) == 1;
    if (sscanf(name.c_str(), "port%u", &one) == 1 && one < kMaxPorts) {
      devices.ports = std::max(devices.ports, one + 1);
    } else if (sscanf(name.c_str(), "disk-%u-%u", &one, &two) == 2) {
      devices.places.insert({one, two});
    } else if (arena || controller) {
      ASSIGN_OR_RETURN(const std::string bus, Text(qmp, path, "parent_bus"));
      const std::optional<uint32_t> port = PortOfBus(bus);
      if (port) devices.used_ports.insert(*port);
      if (arena) {
        ASSIGN_OR_RETURN(ArenaWindow window, ReadWindow(qmp, path, name, port));
        devices.windows.push_back(std::move(window));
      } else if (port) {
        devices.controllers[one] = *port;
      }
    }
  }
  std::stable_sort(devices.windows.begin(), devices.windows.end(),
                   [](const ArenaWindow& a, const ArenaWindow& b) { return a.arena.bytes < b.arena.bytes; });
  return devices;
}

}  // namespace lamina::vmm
