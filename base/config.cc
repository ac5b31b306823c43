#include "base/config.h"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <map>
#include <numeric>
#include <string>

#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include "absl/strings/numbers.h"
#include "base/file_system.h"
#include "base/status.h"

namespace lamina {
namespace {

using Setter = std::function<absl::Status(Config&, const toml::node&, const std::string& key)>;

template <typename T>
absl::StatusOr<T> Get(const toml::node& node, const std::string& key, const char* wanted) {
  const auto value = node.value_exact<T>();
  if (!value) return InvalidArgument("{} must be {}", key, wanted);
  return *value;
}

Setter Text(std::function<std::string&(Config&)> field, std::vector<std::string> allowed = {}) {
  return [=](Config& config, const toml::node& node, const std::string& key) -> absl::Status {
    ASSIGN_OR_RETURN(std::string value, Get<std::string>(node, key, "a text in quotes"));
    if (!allowed.empty() && std::find(allowed.begin(), allowed.end(), value) == allowed.end()) {
      return InvalidArgument("{} = \"{}\": must be one of {}", key, value, fmt::join(allowed, ", "));
    }
    field(config) = std::move(value);
    return absl::OkStatus();
  };
}

Setter Path(std::function<std::string&(Config&)> field) {
  return [=](Config& config, const toml::node& node, const std::string& key) -> absl::Status {
    ASSIGN_OR_RETURN(std::string value, Get<std::string>(node, key, "a path in quotes"));
    if (value.empty() || value[0] != '/')
      return InvalidArgument("{} = \"{}\": must be an absolute path", key, value);
    field(config) = std::move(value);
    return absl::OkStatus();
  };
}

// Where an empty text means that there is no such file.
Setter OptionalPath(std::function<std::string&(Config&)> field) {
  return [=, path = Path(field)](Config& config, const toml::node& node, const std::string& key) {
    if (node.value_exact<std::string>() != "") return path(config, node, key);
    field(config).clear();
    return absl::OkStatus();
  };
}

Setter Paths(std::function<std::vector<std::string>&(Config&)> field) {
  return [=](Config& config, const toml::node& node, const std::string& key) -> absl::Status {
    const toml::array* list = node.as_array();
    if (list == nullptr) return InvalidArgument("{} must be a list of paths: [\"/a\", \"/b/\"]", key);
    std::vector<std::string> paths;
    for (const toml::node& item : *list) {
      ASSIGN_OR_RETURN(std::string path, Get<std::string>(item, key, "a list of paths in quotes"));
      if (path.empty() || path[0] != '/')
        return InvalidArgument("{}: \"{}\" must be an absolute path", key, path);
      paths.push_back(std::move(path));
    }
    field(config) = std::move(paths);
    return absl::OkStatus();
  };
}

Setter Bytes(std::function<uint64_t&(Config&)> field) {
  return [=](Config& config, const toml::node& node, const std::string& key) -> absl::Status {
    if (const auto number = node.value_exact<int64_t>()) {
      if (*number < 0) return InvalidArgument("{} = {}: must not be negative", key, *number);
      field(config) = static_cast<uint64_t>(*number);
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const std::string value, Get<std::string>(node, key, "a size such as \"64MiB\""));
    ASSIGN_OR_RETURN(field(config), ParseBytes(value, key));
    return absl::OkStatus();
  };
}

// Text, so that no decimal passes through a double.
Setter Cpus(std::function<int64_t&(Config&)> field) {
  return [=](Config& config, const toml::node& node, const std::string& key) -> absl::Status {
    if (const auto number = node.value_exact<int64_t>()) {
      ASSIGN_OR_RETURN(field(config), ParseCpus(std::to_string(*number), key));
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(const std::string value,
                     Get<std::string>(node, key, "CPUs in quotes, such as \"0.5\" or \"250m\""));
    ASSIGN_OR_RETURN(field(config), ParseCpus(value, key));
    return absl::OkStatus();
  };
}

template <typename T>
Setter Integer(std::function<T&(Config&)> field, int64_t low, int64_t high) {
  return [=](Config& config, const toml::node& node, const std::string& key) -> absl::Status {
    ASSIGN_OR_RETURN(const int64_t value, Get<int64_t>(node, key, "a whole number"));
    if (value < low || value > high)
      return InvalidArgument("{} = {}: must be from {} to {}", key, value, low, high);
    field(config) = static_cast<T>(value);
    return absl::OkStatus();
  };
}

Setter Flag(std::function<bool&(Config&)> field) {
  return [=](Config& config, const toml::node& node, const std::string& key) -> absl::Status {
    ASSIGN_OR_RETURN(field(config), Get<bool>(node, key, "true or false"));
    return absl::OkStatus();
  };
}

// HOST:PORT, without a literal IPv6 address.
Setter Address(std::function<std::string&(Config&)> field) {
  return [=](Config& config, const toml::node& node, const std::string& key) -> absl::Status {
    ASSIGN_OR_RETURN(std::string value, Get<std::string>(node, key, "a text in quotes"));
    const size_t colon = value.find(':');
    uint32_t port = 0;
    if (colon == 0 || colon == std::string::npos || !absl::SimpleAtoi(value.substr(colon + 1), &port) ||
        port < 1 || port > 65535) {
      return InvalidArgument(
          "{} = \"{}\": must be HOST:PORT with a name or an IPv4 address and a port of 1 to 65535", key,
          value);
    }
    field(config) = std::move(value);
    return absl::OkStatus();
  };
}

// FIRST-LAST. The lowest numbers are the system's own users.
Setter Users(std::function<UserRange&(Config&)> field) {
  return [=](Config& config, const toml::node& node, const std::string& key) -> absl::Status {
    ASSIGN_OR_RETURN(const std::string value, Get<std::string>(node, key, "a text in quotes"));
    constexpr uint32_t kLowest = 1000, kHighest = 4'294'967'293;
    UserRange range;
    const size_t dash = value.find('-');
    const bool two = dash != std::string::npos && absl::SimpleAtoi(value.substr(0, dash), &range.first) &&
                     absl::SimpleAtoi(value.substr(dash + 1), &range.last);
    if (!value.empty() &&
        (!two || range.first < kLowest || range.first > range.last || range.last > kHighest)) {
      return InvalidArgument("{} = \"{}\": must be FIRST-LAST, numbers from {} to {}, or empty", key, value,
                             kLowest, kHighest);
    }
    field(config) = range;
    return absl::OkStatus();
  };
}

Setter Texts(std::function<std::vector<std::string>&(Config&)> field) {
  return [=](Config& config, const toml::node& node, const std::string& key) -> absl::Status {
    const toml::array* array = node.as_array();
    if (array == nullptr) return InvalidArgument("{} must be a list of texts", key);
    field(config).clear();
    for (const toml::node& element : *array) {
      ASSIGN_OR_RETURN(std::string value, Get<std::string>(element, key, "a list of texts"));
      field(config).push_back(std::move(value));
    }
    return absl::OkStatus();
  };
}

#define FIELD(expr) \
  [](Config & c) -> auto& { return c.expr; }

const std::map<std::string, Setter>& Setters() {
  static const std::map<std::string, Setter> setters = {
      {"paths.run_dir", Path(FIELD(paths.run_dir))},
      {"paths.state_dir", Path(FIELD(paths.state_dir))},
      {"paths.guest_dir", Path(FIELD(paths.guest_dir))},
      {"sizing.overhead_cpu", Cpus(FIELD(sizing.overhead_nano_cpus))},
      {"sizing.overhead_memory", Bytes(FIELD(sizing.overhead_memory_bytes))},
      {"sizing.default_cpu", Cpus(FIELD(sizing.default_nano_cpus))},
      {"sizing.default_memory", Bytes(FIELD(sizing.default_memory_bytes))},
      {"sizing.max_cpu", Integer<uint32_t>(FIELD(sizing.max_vcpus), 0, 1024)},
      {"sizing.max_memory", Bytes(FIELD(sizing.max_memory_bytes))},
      {"sizing.min_memory", Bytes(FIELD(sizing.min_memory_bytes))},
      {"sizing.mode", Text(FIELD(sizing.mode), {"static", "dynamic"})},
      {"sizing.hotplug_cpu", Integer<uint32_t>(FIELD(sizing.hotplug_vcpus), 0, 255)},
      {"sizing.hotplug_memory", Bytes(FIELD(sizing.hotplug_memory_bytes))},
      {"sizing.cgroup_fit", Text(FIELD(sizing.cgroup_fit), {"warn", "refuse", "off"})},
      {"sizing.allowed_annotations", Texts(FIELD(sizing.allowed_annotations))},
      {"hypervisor.qemu", Text(FIELD(hypervisor.qemu))},
      {"hypervisor.accel", Text(FIELD(hypervisor.accel), {"auto", "kvm", "tcg"})},
      {"hypervisor.firmware", Path(FIELD(hypervisor.firmware))},
      {"hypervisor.virtiofsd", Path(FIELD(hypervisor.virtiofsd))},
      {"hypervisor.users", Users(FIELD(hypervisor.users))},
      {"hypervisor.boot_timeout_seconds", Integer<uint64_t>(FIELD(hypervisor.boot_timeout_seconds), 1, 3600)},
      {"hypervisor.hotplug_ports", Integer<uint32_t>(FIELD(hypervisor.hotplug_ports), 1, 64)},
      {"hypervisor.vmm_overhead_memory", Bytes(FIELD(hypervisor.vmm_overhead_memory_bytes))},
      {"hypervisor.kernel_args", Text(FIELD(hypervisor.kernel_args))},
      {"layers.vpmem", Flag(FIELD(layers.vpmem))},
      {"layers.scsi_verity", Flag(FIELD(layers.scsi_verity))},
      {"layers.policy", Text(FIELD(layers.policy), {"classic", "dense"})},
      {"layers.sharing", Text(FIELD(layers.sharing), {"pod", "namespace", "node"})},
      {"layers.arena_size", Bytes(FIELD(layers.arena_bytes))},
      {"layers.max_layer_size", Bytes(FIELD(layers.max_layer_bytes))},
      {"layers.max_arenas_per_pod", Integer<uint32_t>(FIELD(layers.max_arenas_per_pod), 1, 64)},
      {"layers.idle_budget", Bytes(FIELD(layers.idle_budget_bytes))},
      {"layers.disk_budget", Bytes(FIELD(layers.disk_budget_bytes))},
      {"layers.disk_reserve", Bytes(FIELD(layers.disk_reserve_bytes))},
      {"layers.convert_timeout_seconds", Integer<uint64_t>(FIELD(layers.convert_timeout_seconds), 1, 86400)},
      {"layers.convert_memory", Bytes(FIELD(layers.convert_memory_bytes))},
      {"layers.convert_size", Bytes(FIELD(layers.convert_size_bytes))},
      {"memory.capacity", Bytes(FIELD(memory.capacity_bytes))},
      {"memory.reserve", Bytes(FIELD(memory.reserve_bytes))},
      {"memory.carve_out", Bytes(FIELD(memory.carve_out_bytes))},
      {"memory.min_available", Bytes(FIELD(memory.min_available_bytes))},
      {"memory.balloon", Flag(FIELD(memory.balloon))},
      {"memory.balloon_floor", Bytes(FIELD(memory.balloon_floor_bytes))},
      {"memory.balloon_margin", Bytes(FIELD(memory.balloon_margin_bytes))},
      {"volumes.root", Text(FIELD(volumes.root), {"disk", "memory"})},
      {"volumes.root_size", Bytes(FIELD(volumes.root_size_bytes))},
      {"volumes.empty_dir", Text(FIELD(volumes.empty_dir), {"disk", "shared"})},
      {"volumes.empty_dir_size", Bytes(FIELD(volumes.empty_dir_size_bytes))},
      {"volumes.sockets", Paths(FIELD(volumes.sockets))},
      {"laminad.rest_address", Address(FIELD(laminad.rest_address))},
      {"laminad.rest_tls_certificate", OptionalPath(FIELD(laminad.rest_tls_certificate))},
      {"laminad.rest_tls_key", OptionalPath(FIELD(laminad.rest_tls_key))},
      {"laminad.rest_token_file", OptionalPath(FIELD(laminad.rest_token_file))},
      {"laminad.log_level", Text(FIELD(laminad.log_level), {"debug", "info", "warning", "error"})},
  };
  return setters;
}

size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

std::string Nearest(const std::string& key) {
  const auto& setters = Setters();
  return std::min_element(setters.begin(), setters.end(),
                          [&](const auto& a, const auto& b) {
                            return EditDistance(key, a.first) < EditDistance(key, b.first);
                          })
      ->first;
}

bool PowerOfFourMiB(uint64_t bytes) {
  for (uint64_t size = kMiB; size <= 4 * kGiB; size *= 4) {
    if (bytes == size) return true;
  }
  return false;
}

absl::Status Check(const Config& config) {
  if (config.layers.arena_bytes < 2 * kMiB || config.layers.arena_bytes % (2 * kMiB) != 0) {
    return InvalidArgument("layers.arena_size = {}: must be a multiple of 2MiB",
                           FormatBytes(config.layers.arena_bytes));
  }
  if (config.layers.policy == "classic" && !PowerOfFourMiB(config.layers.arena_bytes)) {
    return InvalidArgument(
        "layers.arena_size = {}: with layers.policy = \"classic\" it must be 1, 4, 16, 64, 256, 1024 or 4096 "
        "MiB",
        FormatBytes(config.layers.arena_bytes));
  }
  if (config.layers.convert_memory_bytes < 64 * kMiB) {
    return InvalidArgument("layers.convert_memory = {}: must be at least 64MiB, or no layer is converted",
                           FormatBytes(config.layers.convert_memory_bytes));
  }
  if (config.layers.convert_size_bytes < kMiB) {
    return InvalidArgument("layers.convert_size = {}: must be at least 1MiB",
                           FormatBytes(config.layers.convert_size_bytes));
  }
  if (config.sizing.default_memory_bytes == 0)
    return InvalidArgument("sizing.default_memory = 0: a VM needs memory");
  if (config.sizing.max_memory_bytes != 0 &&
      config.sizing.max_memory_bytes < config.sizing.min_memory_bytes) {
    return InvalidArgument("sizing.max_memory = {}: must not be below sizing.min_memory = {}",
                           FormatBytes(config.sizing.max_memory_bytes),
                           FormatBytes(config.sizing.min_memory_bytes));
  }
  for (const auto& [key, bytes] :
       {std::pair{"volumes.root_size", config.volumes.root_size_bytes},
        std::pair{"volumes.empty_dir_size", config.volumes.empty_dir_size_bytes}}) {
    if (bytes < kMinDiskBytes || bytes > kMaxDiskBytes) {
      return InvalidArgument("{} = {}: must be from {} to {}", key, FormatBytes(bytes),
                             FormatBytes(kMinDiskBytes), FormatBytes(kMaxDiskBytes));
    }
  }
  const Config::Laminad& laminad = config.laminad;
  if (laminad.rest_tls_certificate.empty() != laminad.rest_tls_key.empty()) {
    return InvalidArgument(
        "laminad.rest_tls_certificate = \"{}\" and laminad.rest_tls_key = \"{}\": both or neither",
        laminad.rest_tls_certificate, laminad.rest_tls_key);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Config> ParseConfig(std::string_view text, const std::string& name) {
  const toml::parse_result parsed = toml::parse(text, name);
  if (!parsed) {
    return InvalidArgument("{}:{}: {}", name, parsed.error().source().begin.line,
                           parsed.error().description());
  }
  Config config;
  for (const auto& [section, node] : parsed.table()) {
    const toml::table* table = node.as_table();
    if (table == nullptr) {
      return InvalidArgument("{}:{}: \"{}\" stands outside a section; did you mean {}?", name,
                             node.source().begin.line, section.str(), Nearest(std::string(section.str())));
    }
    for (const auto& [option, value] : *table) {
      const std::string key = fmt::format("{}.{}", section.str(), option.str());
      const auto setter = Setters().find(key);
      if (setter == Setters().end()) {
        return InvalidArgument("{}:{}: unknown option {}; the nearest known one is {}", name,
                               value.source().begin.line, key, Nearest(key));
      }
      RETURN_IF_ERROR(Annotate(setter->second(config, value, key),
                               fmt::format("{}:{}", name, value.source().begin.line)));
    }
  }
  RETURN_IF_ERROR(Annotate(Check(config), name));
  return config;
}

absl::StatusOr<Config> LoadConfig(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, FileSystem::Real().Read(path, kMiB));
  return ParseConfig(text, path);
}

absl::StatusOr<Config> LoadDefaultConfig() {
  if (const char* path = getenv("LAMINA_CONFIG"); path != nullptr && *path != '\0') return LoadConfig(path);
  constexpr char kPath[] = "/etc/lamina/config.toml";
  if (!FileSystem::Real().Exists(kPath)) return Config();
  return LoadConfig(kPath);
}

}  // namespace lamina
