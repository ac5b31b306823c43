#include "persist/sandbox_state.h"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/crc32.h"
#include "base/framing.h"
#include "base/safe_id.h"
#include "base/status.h"

namespace lamina::persist {
namespace {

using nlohmann::json;

constexpr const char* kLifeCycleNames[] = {"creating", "ready", "stopping", "stopped"};
constexpr const char* kContainerLifeNames[] = {"created", "running", "stopped"};

json ToJson(const ProcessId& process) { return {{"pid", process.pid}, {"start_time", process.start_time}}; }

constexpr FrameKind kKind{"state", 3, kStateVersion};

// Versions 1 and 2: a first line "lamina-state <version> <CRC-32 of the rest, 8 hex digits>". NotFound: it is
// another.
absl::StatusOr<Frame> OldFrame(std::string_view content, const FramedFile& file) {
  for (int version = 1; version < kKind.oldest; ++version) {
    const std::string begin = fmt::format("lamina-state {} ", version);
    const size_t newline = begin.size() + 8;
    if (!content.starts_with(begin) || content.find('\n') != newline) continue;
    const std::string_view body = content.substr(newline + 1);
    const std::string found = fmt::format("{:08x}", Crc32(body));
    const std::string_view said = content.substr(begin.size(), 8);
    if (said != found)
      return DamagedFile(file, fmt::format("checksum {}, its first line says {}", found, said));
    return Frame{version, body, content.size()};
  }
  return absl::NotFoundError("not of an old form");
}

// No exceptions: nlohmann's value() throws.
template <typename T>
bool FromJson(const json& value, T& out) {
  if constexpr (std::is_same_v<T, bool>) {
    if (!value.is_boolean()) return false;
    out = value.template get<bool>();
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (!value.is_string()) return false;
    out = value.template get_ref<const std::string&>();
  } else if constexpr (std::is_integral_v<T>) {
    if (!value.is_number_integer()) return false;
    if (value.is_number_unsigned() ? !std::in_range<T>(value.template get<uint64_t>())
                                   : !std::in_range<T>(value.template get<int64_t>())) {
      return false;
    }
    out = value.template get<T>();
  } else {
    if (!value.is_array()) return false;
    out.clear();
    for (const json& element : value) {
      if (!FromJson(element, out.emplace_back())) return false;
    }
  }
  return true;
}

// A field that is absent keeps the default; one of another type makes the file damaged.
template <typename T>
bool Read(const json& object, const char* key, T& out) {
  const auto it = object.find(key);
  return it == object.end() || FromJson(*it, out);
}

bool ReadProcess(const json& object, const char* key, ProcessId& out) {
  const auto it = object.find(key);
  if (it == object.end()) return true;
  return it->is_object() && Read(*it, "pid", out.pid) && Read(*it, "start_time", out.start_time);
}

bool ReadLayer(const json& object, PlacedLayer& layer) {
  return object.is_object() && Read(object, "id", layer.id) && Read(object, "arena", layer.arena) &&
         Read(object, "offset", layer.offset) && Read(object, "size", layer.size) &&
         Read(object, "image_path", layer.image_path) && Read(object, "tree_path", layer.tree_path) &&
         Read(object, "device", layer.device);
}

bool ReadVolume(const json& object, PodVolume& volume) {
  return object.is_object() && Read(object, "name", volume.name) && IsSafeId(volume.name) &&
         Read(object, "kind", volume.kind) && Read(object, "source", volume.source) &&
         Read(object, "device", volume.device) && Read(object, "place", volume.place) &&
         Read(object, "read_only", volume.read_only) && Read(object, "follows_host", volume.follows_host);
}

// One of `names`, by its place among them.
template <size_t kNames, typename Enum>
bool ReadName(const json& object, const char* key, const char* const (&names)[kNames], Enum& out) {
  std::string name;
  if (!Read(object, key, name)) return false;
  const auto it = std::find(std::begin(names), std::end(names), name);
  if (it == std::end(names)) return false;
  out = static_cast<Enum>(it - std::begin(names));
  return true;
}

bool ReadContainer(const json& object, ContainerState& container) {
  return object.is_object() && Read(object, "id", container.id) && Read(object, "bundle", container.bundle) &&
         ReadName(object, "state", kContainerLifeNames, container.life) &&
         Read(object, "exit_status", container.exit_status) &&
         Read(object, "layer_ids", container.layer_ids) && Read(object, "mounts", container.mounts) &&
         Read(object, "disks", container.disks) && Read(object, "devices", container.devices) &&
         Read(object, "pid", container.pid) && Read(object, "exit_unix_nanos", container.exit_unix_nanos) &&
         Read(object, "stdin_path", container.stdin_path) &&
         Read(object, "stdout_path", container.stdout_path) &&
         Read(object, "stderr_path", container.stderr_path) && Read(object, "terminal", container.terminal) &&
         Read(object, "first_stream", container.first_stream);
}

bool ReadNetwork(const json& root, SandboxState& state) {
  const auto it = root.find("network");
  if (it == root.end()) return true;
  return it->is_object() && Read(*it, "netns_path", state.netns_path) &&
         Read(*it, "tap_name", state.tap_name) && Read(*it, "mac", state.mac);
}

// Makes a document of `version` one of the present version. Each step is one version's.
bool Migrate(int version, json& root) {
  if (!root.is_object()) return false;
  if (version < 2) {
    json network = json::object();
    for (const char* key : {"netns_path", "tap_name"}) {
      if (const auto it = root.find(key); it != root.end()) network[key] = std::move(*it);
      root.erase(key);
    }
    root["network"] = std::move(network);
  }
  return true;
}

json ToJson(const LimitsState& limits) {
  return {{"name", limits.name},
          {"quota", limits.quota},
          {"period", limits.period},
          {"shares", limits.shares},
          {"memory_bytes", limits.memory_bytes},
          {"extra_memory_bytes", limits.extra_memory_bytes}};
}

bool ReadLimits(const json& object, const char* key, LimitsState& out) {
  const auto it = object.find(key);
  if (it == object.end()) return true;
  return it->is_object() && Read(*it, "name", out.name) && Read(*it, "quota", out.quota) &&
         Read(*it, "period", out.period) && Read(*it, "shares", out.shares) &&
         Read(*it, "memory_bytes", out.memory_bytes) &&
         Read(*it, "extra_memory_bytes", out.extra_memory_bytes);
}

bool ReadPart(const json& object, LimitedPart& part) {
  return object.is_object() && Read(object, "name", part.name) && Read(object, "id", part.id) &&
         ReadLimits(object, "first", part.first) && ReadLimits(object, "now", part.now);
}

bool ReadState(const json& root, SandboxState& state) {
  if (!root.is_object() || !Read(root, "created_with_version", state.created_with_version) ||
      !ReadName(root, "life_cycle", kLifeCycleNames, state.life_cycle) ||
      !Read(root, "sandbox_id", state.sandbox_id) || !Read(root, "pod_name", state.pod_name) ||
      !Read(root, "pod_namespace", state.pod_namespace) || !Read(root, "pod_uid", state.pod_uid) ||
      !Read(root, "bundle", state.bundle) || !Read(root, "vcpus", state.vcpus) ||
      !Read(root, "memory_bytes", state.memory_bytes) || !Read(root, "max_vcpus", state.max_vcpus) ||
      !Read(root, "boot_memory_bytes", state.boot_memory_bytes) ||
      !Read(root, "max_hot_memory_bytes", state.max_hot_memory_bytes) ||
      !Read(root, "has_pod_limits", state.has_pod_limits) ||
      !ReadLimits(root, "pod_limits", state.pod_limits) || !Read(root, "claim_bytes", state.claim_bytes) ||
      !Read(root, "claim_generation", state.claim_generation) || !Read(root, "reasons", state.reasons) ||
      !Read(root, "numa_nodes", state.numa_nodes) || !ReadProcess(root, "shim", state.shim) ||
      !ReadProcess(root, "vmm", state.vmm) || !ReadProcess(root, "virtiofsd", state.virtiofsd) ||
      !Read(root, "boot_id", state.boot_id) || !Read(root, "runtime_dir", state.runtime_dir) ||
      !ReadNetwork(root, state) || !Read(root, "cgroup_dirs", state.cgroup_dirs) ||
      !Read(root, "has_pod_files", state.has_pod_files) || !Read(root, "arenas", state.arenas)) {
    return false;
  }
  if (!IsSafeId(state.sandbox_id)) return false;
  if (const auto parts = root.find("limited_parts"); parts != root.end()) {
    if (!parts->is_array()) return false;
    for (const json& object : *parts) {
      if (!ReadPart(object, state.limited_parts.emplace_back())) return false;
    }
  }
  if (const auto layers = root.find("layers"); layers != root.end()) {
    if (!layers->is_array()) return false;
    for (const json& object : *layers) {
      if (!ReadLayer(object, state.layers.emplace_back())) return false;
    }
  }
  if (const auto volumes = root.find("volumes"); volumes != root.end()) {
    if (!volumes->is_array()) return false;
    for (const json& object : *volumes) {
      if (!ReadVolume(object, state.volumes.emplace_back())) return false;
    }
  }
  if (const auto disks = root.find("disks"); disks != root.end()) {
    if (!disks->is_array()) return false;
    for (const json& object : *disks) {
      PodDisk& disk = state.disks.emplace_back();
      if (!object.is_object() || !Read(object, "name", disk.name) || !Read(object, "image", disk.image))
        return false;
    }
  }
  if (const auto containers = root.find("containers"); containers != root.end()) {
    if (!containers->is_array()) return false;
    for (const json& object : *containers) {
      ContainerState container;
      if (!ReadContainer(object, container) || !IsSafeId(container.id)) return false;
      const std::string id = container.id;
      state.containers[id] = std::move(container);
    }
  }
  return true;
}

}  // namespace

const char* LifeCycleName(LifeCycle value) { return kLifeCycleNames[static_cast<int>(value)]; }

std::string EncodeState(const SandboxState& state) {
  json layers = json::array(), containers = json::array(), parts = json::array(), volumes = json::array(),
       disks = json::array();
  for (const PodVolume& volume : state.volumes) {
    volumes.push_back({{"name", volume.name},
                       {"kind", volume.kind},
                       {"source", volume.source},
                       {"device", volume.device},
                       {"place", volume.place},
                       {"read_only", volume.read_only},
                       {"follows_host", volume.follows_host}});
  }
  for (const LimitedPart& part : state.limited_parts) {
    parts.push_back(
        {{"name", part.name}, {"id", part.id}, {"first", ToJson(part.first)}, {"now", ToJson(part.now)}});
  }
  for (const PlacedLayer& layer : state.layers) {
    layers.push_back({{"id", layer.id},
                      {"kind", layer.arena.empty() ? "scsi" : "vpmem"},  // for people
                      {"arena", layer.arena},
                      {"offset", layer.offset},
                      {"size", layer.size},
                      {"image_path", layer.image_path},
                      {"tree_path", layer.tree_path},
                      {"device", layer.device}});
  }
  for (const PodDisk& disk : state.disks) disks.push_back({{"name", disk.name}, {"image", disk.image}});
  for (const auto& [id, container] : state.containers) {
    containers.push_back({{"id", container.id},
                          {"bundle", container.bundle},
                          {"state", kContainerLifeNames[static_cast<int>(container.life)]},
                          {"exit_status", container.exit_status},
                          {"exit_unix_nanos", container.exit_unix_nanos},
                          {"layer_ids", container.layer_ids},
                          {"mounts", container.mounts},
                          {"disks", container.disks},
                          {"devices", container.devices},
                          {"pid", container.pid},
                          {"stdin_path", container.stdin_path},
                          {"stdout_path", container.stdout_path},
                          {"stderr_path", container.stderr_path},
                          {"terminal", container.terminal},
                          {"first_stream", container.first_stream}});
  }
  const json root = {
      {"created_with_version", state.created_with_version},
      {"life_cycle", LifeCycleName(state.life_cycle)},
      {"sandbox_id", state.sandbox_id},
      {"pod_name", state.pod_name},
      {"pod_namespace", state.pod_namespace},
      {"pod_uid", state.pod_uid},
      {"bundle", state.bundle},
      {"vcpus", state.vcpus},
      {"memory_bytes", state.memory_bytes},
      {"max_vcpus", state.max_vcpus},
      {"boot_memory_bytes", state.boot_memory_bytes},
      {"max_hot_memory_bytes", state.max_hot_memory_bytes},
      {"has_pod_limits", state.has_pod_limits},
      {"pod_limits", ToJson(state.pod_limits)},
      {"limited_parts", parts},
      {"claim_bytes", state.claim_bytes},
      {"claim_generation", state.claim_generation},
      {"numa_nodes", state.numa_nodes},
      {"reasons", state.reasons},
      {"shim", ToJson(state.shim)},
      {"vmm", ToJson(state.vmm)},
      {"virtiofsd", ToJson(state.virtiofsd)},
      {"boot_id", state.boot_id},
      {"runtime_dir", state.runtime_dir},
      {"has_pod_files", state.has_pod_files},
      {"network", {{"netns_path", state.netns_path}, {"tap_name", state.tap_name}, {"mac", state.mac}}},
      {"cgroup_dirs", state.cgroup_dirs},
      {"arenas", state.arenas},
      {"layers", layers},
      {"volumes", volumes},
      {"disks", disks},
      {"containers", containers}};
  return EncodeFrame(kKind, root.dump(1, ' ', false, json::error_handler_t::replace) + "\n");
}

absl::StatusOr<SandboxState> DecodeState(std::string_view content, const std::string& what) {
  const FramedFile file{what, ""};
  absl::StatusOr<Frame> frame = OldFrame(content, file);
  if (absl::IsNotFound(frame.status())) frame = OnlyFrame(kKind, content, file);
  RETURN_IF_ERROR(frame.status());
  json root = json::parse(frame->payload, nullptr, false);
  SandboxState state;
  if (root.is_discarded() || !Migrate(frame->version, root) || !ReadState(root, state) ||
      state.created_with_version < 1 || state.created_with_version > frame->version) {
    return DamagedFile(file, "its content is not a sandbox state");
  }
  return state;
}

}  // namespace lamina::persist
