#include "cri/oci_spec.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>

#include "base/file_system.h"
#include "base/status.h"
#include "base/units.h"

namespace lamina::cri {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 64;  // the agent's limit too
constexpr char kCri[] = "io.kubernetes.cri.";
// Nodes that every guest has; other devices are the host's and mean nothing in a VM.
const std::set<std::string> kGuestDevices = {"/dev/null",   "/dev/zero",    "/dev/full",
                                             "/dev/random", "/dev/urandom", "/dev/tty"};

absl::StatusOr<json> ParseObject(const std::string& text, const std::string& what) {
  bool too_deep = false, has_nul = false;
  const auto check = [&](int depth, json::parse_event_t, const json& parsed) {
    too_deep = too_deep || depth > kMaxDepth;
    has_nul = has_nul ||
              (parsed.is_string() && parsed.get_ref<const std::string&>().find('\0') != std::string::npos);
    return depth <= kMaxDepth;
  };
  json root = json::parse(text, check, false);
  if (too_deep) return InvalidArgument("{}: nested deeper than {} levels", what, kMaxDepth);
  if (has_nul) return InvalidArgument("{}: a text in it contains a NUL character", what);
  if (!root.is_object()) return InvalidArgument("{}: not a JSON object", what);
  return root;
}

const json& Child(const json& object, const char* key) {
  static const json null;
  if (!object.is_object()) return null;
  const auto it = object.find(key);
  return it == object.end() ? null : *it;
}

std::string Text(const json& object, const char* key) {
  const json& value = Child(object, key);
  return value.is_string() ? value.get<std::string>() : std::string();
}

std::map<std::string, std::string> TextMap(const json& object) {
  std::map<std::string, std::string> map;
  if (!object.is_object()) return map;
  for (const auto& [key, value] : object.items()) {
    if (value.is_string()) map[key] = value.get<std::string>();
  }
  return map;
}

std::optional<int64_t> Number(const json& object, const char* key) {
  const json& value = Child(object, key);
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) return INT64_MAX;
  return value.get<int64_t>();
}

// A rule of the device cgroup that names this device and no other.
bool IsRuleOf(const json& rule, const json& device) {
  const auto major = Number(rule, "major"), minor = Number(rule, "minor");
  return major && minor && major == Number(device, "major") && minor == Number(device, "minor") &&
         Text(rule, "type") == Text(device, "type");
}

// Replaces what `resources` names.
void ReadLimits(const json& resources, sizing::Limits& limits) {
  const json& cpu = Child(resources, "cpu");
  if (const auto quota = Number(cpu, "quota")) limits.cpu.quota = quota;
  if (const auto period = Number(cpu, "period"); period.value_or(0) > 0)
    limits.cpu.period = static_cast<uint64_t>(*period);
  if (const auto shares = Number(cpu, "shares"); shares.value_or(0) > 0)
    limits.cpu.shares = static_cast<uint64_t>(*shares);
  if (const auto memory = Number(Child(resources, "memory"), "limit")) limits.memory_bytes = memory;
  const json& huge_pages = Child(resources, "hugepageLimits");
  if (!huge_pages.is_array()) return;
  limits.extra_memory_bytes = 0;
  for (const json& item : huge_pages) {
    const auto bytes = static_cast<uint64_t>(std::max<int64_t>(0, Number(item, "limit").value_or(0)));
    // No VM is that large, however the sum is read.
    limits.extra_memory_bytes = std::min<uint64_t>(limits.extra_memory_bytes + bytes, INT64_MAX);
  }
}

// A rule that allows every device, as privileged containers have it.
bool AllowsAllDevices(const json& linux_part) {
  const json& rules = Child(Child(linux_part, "resources"), "devices");
  if (!rules.is_array()) return false;
  return std::any_of(rules.begin(), rules.end(), [](const json& rule) {
    const json& allow = Child(rule, "allow");
    const std::string type = Text(rule, "type");
    return allow.is_boolean() && allow.get<bool>() && (type.empty() || type == "a") &&
           Number(rule, "major").value_or(-1) == -1 && Number(rule, "minor").value_or(-1) == -1;
  });
}

// Those with a rule of their own. A privileged container is given all of the host's without one, and has the
// guest's instead.
void ReadBlockDevices(const json& linux_part, std::vector<SpecDevice>& devices) {
  const json& list = Child(linux_part, "devices");
  const json& rules = Child(Child(linux_part, "resources"), "devices");
  if (!list.is_array() || !rules.is_array()) return;
  for (const json& item : list) {
    const auto major = Number(item, "major"), minor = Number(item, "minor");
    if (Text(item, "type") != "b" || !major || !minor) continue;
    SpecDevice device;
    device.path = Text(item, "path");
    device.number = {static_cast<uint32_t>(*major), static_cast<uint32_t>(*minor)};
    for (const json& rule : rules) {
      if (!IsRuleOf(rule, item)) continue;
      const json& allow = Child(rule, "allow");
      device.access = allow.is_boolean() && allow.get<bool>() ? Text(rule, "access") : "";
    }
    if (device.access.empty() || device.path.empty()) continue;
    device.mode = static_cast<uint32_t>(Number(item, "fileMode").value_or(0600)) & 07777;
    device.uid = static_cast<uint32_t>(Number(item, "uid").value_or(0));
    device.gid = static_cast<uint32_t>(Number(item, "gid").value_or(0));
    devices.push_back(std::move(device));
  }
}

}  // namespace

bool SpecMount::is_bind() const {
  return type == "bind" || std::any_of(options.begin(), options.end(),
                                       [](const std::string& o) { return o == "bind" || o == "rbind"; });
}

bool SpecMount::read_only() const {
  return recursive_read_only() || std::find(options.begin(), options.end(), "ro") != options.end();
}

bool SpecMount::recursive_read_only() const {
  return std::find(options.begin(), options.end(), "rro") != options.end();
}

bool SpecMount::follows_host() const {
  return std::any_of(options.begin(), options.end(), [](const std::string& o) {
    return o == "slave" || o == "rslave" || o == "shared" || o == "rshared";
  });
}

std::string BundleSpec::Annotation(const std::string& key) const {
  const auto it = annotations.find(kCri + key);
  return it == annotations.end() ? std::string() : it->second;
}

std::string BundleSpec::sandbox_id(const std::string& fallback) const {
  const std::string id = Annotation("sandbox-id");
  return id.empty() ? fallback : id;
}

absl::StatusOr<BundleSpec> ParseSpec(const std::string& text, const std::string& what) {
  ASSIGN_OR_RETURN(const json root, ParseObject(text, what));
  BundleSpec spec;
  spec.annotations = TextMap(Child(root, "annotations"));
  spec.hostname = Text(root, "hostname");
  const json& linux_part = Child(root, "linux");
  spec.cgroups_path = Text(linux_part, "cgroupsPath");
  spec.sysctls = TextMap(Child(linux_part, "sysctl"));
  const json& namespaces = Child(linux_part, "namespaces");
  if (namespaces.is_array()) {
    for (const json& item : namespaces) {
      if (Text(item, "type") != "network") continue;
      spec.has_network_namespace = true;
      spec.netns_path = Text(item, "path");
    }
  }
  const json& mounts = Child(root, "mounts");
  if (mounts.is_array()) {
    for (const json& item : mounts) {
      SpecMount mount{Text(item, "destination"), Text(item, "type"), Text(item, "source"), {}};
      const json& options = Child(item, "options");
      if (options.is_array()) {
        for (const json& option : options) {
          if (option.is_string()) mount.options.push_back(option.get<std::string>());
        }
      }
      if (mount.destination.empty()) return InvalidArgument("{}: a mount without a destination", what);
      spec.mounts.push_back(std::move(mount));
    }
  }
  const int64_t oom_score_adj = Number(Child(root, "process"), "oomScoreAdj").value_or(0);
  if (oom_score_adj < -1000 || oom_score_adj > 1000)
    return InvalidArgument("{}: process.oomScoreAdj is {}; it goes from -1000 to 1000", what, oom_score_adj);
  spec.oom_score_adj = static_cast<int>(oom_score_adj);
  const std::string name = spec.Annotation("container-name");
  spec.limits.name = name.empty() ? "container" : "container " + name;
  ReadLimits(Child(linux_part, "resources"), spec.limits);
  ReadBlockDevices(linux_part, spec.block_devices);
  spec.all_devices = AllowsAllDevices(linux_part);
  const json& read_only = Child(Child(root, "root"), "readonly");
  spec.read_only_root = read_only.is_boolean() && read_only.get<bool>();
  return spec;
}

absl::StatusOr<BundleSpec> ReadSpec(const std::string& bundle) {
  const std::string path = bundle + "/config.json";
  ASSIGN_OR_RETURN(const std::string text, FileSystem::Real().Read(path, 8 * kMiB));
  return ParseSpec(text, path);
}

absl::StatusOr<sizing::Limits> UpdatedLimits(const sizing::Limits& limits,
                                             const std::string& resources_json) {
  const json resources = json::parse(resources_json, nullptr, false);
  if (resources.is_discarded() || !resources.is_object()) {
    return InvalidArgument("{}: its new resources are not a JSON object: \"{:.80}\"", limits.name,
                           resources_json);
  }
  sizing::Limits updated = limits;
  ReadLimits(resources, updated);
  return updated;
}

absl::StatusOr<std::string> GuestSpec(const std::string& text,
                                      const std::map<size_t, std::string>& guest_sources,
                                      std::vector<std::string>& notes) {
  ASSIGN_OR_RETURN(json root, ParseObject(text, "config.json"));
  root.erase("hooks");
  json& linux_part = root["linux"];
  if (!linux_part.is_object()) linux_part = json::object();
  // ID mappings belong to a user namespace of the host's making.
  for (const char* key : {"cgroupsPath", "mountLabel", "intelRdt", "sysctl", "uidMappings", "gidMappings"})
    linux_part.erase(key);
  if (const auto process = root.find("process"); process != root.end() && process->is_object()) {
    process->erase("apparmorProfile");
    process->erase("selinuxLabel");
  }
  if (const auto seccomp = linux_part.find("seccomp"); seccomp != linux_part.end() && seccomp->is_object()) {
    for (const char* key : {"listenerPath", "listenerMetadata"}) {
      if (seccomp->erase(key) != 0) notes.push_back(fmt::format("seccomp.{} is the host's", key));
    }
  }
  // Network, IPC and UTS are the pod's, which is the VM; a shared PID namespace is the guest's own.
  json namespaces = json::array();
  for (const json& item :
       Child(linux_part, "namespaces").is_array() ? linux_part["namespaces"] : json::array()) {
    const std::string type = Text(item, "type");
    // What is none of these is the VM's, or unknown to it.
    if ((type == "pid" || type == "mount") && Text(item, "path").empty())
      namespaces.push_back({{"type", type}});
  }
  // The guest has cgroup v2 whatever the host has: the container's limits are at /sys/fs/cgroup itself.
  namespaces.push_back({{"type", "cgroup"}});
  linux_part["namespaces"] = namespaces;
  root.erase("hostname");
  std::vector<SpecDevice> disks;
  ReadBlockDevices(linux_part, disks);
  json devices = json::array(), foreign = json::array();
  for (const json& item : Child(linux_part, "devices").is_array() ? linux_part["devices"] : json::array())
    (kGuestDevices.count(Text(item, "path")) != 0 ? devices : foreign).push_back(item);
  const bool privileged = AllowsAllDevices(linux_part);
  for (const json& item : foreign) {
    const std::string path = Text(item, "path");
    const bool is_disk =
        std::any_of(disks.begin(), disks.end(), [&](const SpecDevice& disk) { return disk.path == path; });
    if (is_disk || privileged) continue;
    return InvalidArgument(
        "device \"{}\" of the node: a VM has block devices of it and no others; a privileged container has "
        "the VM's own",
        path);
  }
  if (privileged && !foreign.empty()) notes.push_back("devices: the VM's own, in the place of the node's");
  linux_part["devices"] = devices;
  if (json& resources = linux_part["resources"]; resources.is_object()) {
    // In the guest their numbers are other devices'.
    if (json& rules = resources["devices"]; rules.is_array()) {
      std::erase_if(rules.get_ref<json::array_t&>(), [&](const json& rule) {
        return std::any_of(foreign.begin(), foreign.end(),
                           [&](const json& device) { return IsRuleOf(rule, device); });
      });
    } else {
      resources.erase("devices");
    }
    for (const char* key : {"blockIO", "hugepageLimits", "network", "rdma"}) {
      if (resources.erase(key) != 0)
        notes.push_back(fmt::format("resources.{} is not applied in the VM", key));
    }
    if (json& cpu = resources["cpu"]; cpu.is_object()) {
      for (const char* key : {"cpus", "mems", "realtimePeriod", "realtimeRuntime"}) cpu.erase(key);
    } else {
      resources.erase("cpu");
    }
  } else {
    linux_part.erase("resources");
  }
  json mounts = json::array();
  const json& old_mounts = Child(root, "mounts");
  for (size_t i = 0; old_mounts.is_array() && i < old_mounts.size(); ++i) {
    json mount = old_mounts[i];
    if (const auto it = guest_sources.find(i); it != guest_sources.end()) {
      if (it->second.empty()) continue;
      if (!mount.is_object()) return InvalidArgument("config.json: mounts[{}] is not an object", i);
      mount["source"] = it->second;
    }
    mounts.push_back(std::move(mount));
  }
  root["mounts"] = mounts;
  return root.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace lamina::cri
