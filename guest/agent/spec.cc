#include "guest/agent/spec.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/status.h"

namespace lamina::guest {
namespace {

using Json = nlohmann::json;

absl::StatusOr<Json> ParseObject(std::string_view text, std::string_view what) {
  bool too_deep = false;
  const auto check_depth = [&too_deep](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxSpecDepth) too_deep = true;
    return depth <= kMaxSpecDepth;
  };
  Json json = Json::parse(text.begin(), text.end(), check_depth, /*allow_exceptions=*/false);
  if (too_deep) return InvalidArgument("{}: nested deeper than {} levels", what, kMaxSpecDepth);
  if (json.is_discarded()) return InvalidArgument("{}: not JSON", what);
  if (!json.is_object()) return InvalidArgument("{}: not a JSON object", what);
  return json;
}

// The text keeps bytes that are not UTF-8 out of crun instead of throwing.
std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// The object at `key`, made when it is missing. InvalidArgument when it is something else.
absl::StatusOr<Json*> ObjectAt(Json& parent, const char* key, std::string_view what) {
  Json& child = parent[key];
  if (child.is_null()) child = Json::object();
  if (!child.is_object()) return InvalidArgument("{}.{}: not a JSON object", what, key);
  return &child;
}

absl::Status AdaptProcess(Json& process, bool terminal, std::string_view what) {
  const auto args = process.find("args");
  const bool fine = args != process.end() && args->is_array() && !args->empty() &&
                    std::all_of(args->begin(), args->end(), [](const Json& arg) { return arg.is_string(); });
  if (!fine) return InvalidArgument("{}.args: want at least one string", what);
  const auto cwd = process.find("cwd");
  if (cwd == process.end() || !cwd->is_string() || cwd->get_ref<const std::string&>().empty() ||
      cwd->get_ref<const std::string&>()[0] != '/') {
    return InvalidArgument("{}.cwd: want an absolute path", what);
  }
  process["terminal"] = terminal;
  if (!terminal) process.erase("consoleSize");
  process.erase("apparmorProfile");
  process.erase("selinuxLabel");
  return absl::OkStatus();
}

void AdaptResources(Json& resources, const std::function<bool(std::string_view)>& has_huge_pages) {
  resources.erase("network");
  if (const auto cpu = resources.find("cpu"); cpu != resources.end() && cpu->is_object()) {
    for (const char* key : {"realtimeRuntime", "realtimePeriod"}) cpu->erase(key);
  }
  if (const auto memory = resources.find("memory"); memory != resources.end() && memory->is_object()) {
    for (const char* key : {"kernel", "kernelTCP", "swappiness", "disableOOMKiller", "useHierarchy"})
      memory->erase(key);
  }
  if (const auto pages = resources.find("hugepageLimits"); pages != resources.end() && pages->is_array()) {
    Json kept = Json::array();
    for (const Json& entry : *pages) {
      const auto size = entry.is_object() ? entry.find("pageSize") : entry.end();
      if (entry.is_object() && size != entry.end() && size->is_string() && has_huge_pages &&
          has_huge_pages(size->get_ref<const std::string&>())) {
        kept.push_back(entry);
      }
    }
    if (kept.empty()) {
      resources.erase("hugepageLimits");
    } else {
      *pages = std::move(kept);
    }
  }
}

// The first part of `path` below `directory` goes into `names`, once.
void NoteName(std::string_view path, std::string_view directory, std::vector<std::string>& names) {
  if (!IsBelow(path, directory)) return;
  path.remove_prefix(directory.size() + 1);
  std::string name(path.substr(0, path.find('/')));
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(std::move(name));
}

// The namespaces of the spec are known and their paths are the guest's; tells whether there is one of type
// "uts".
absl::StatusOr<bool> CheckNamespaces(const Json& linux_section) {
  bool uts = false;
  const auto namespaces = linux_section.find("namespaces");
  if (namespaces == linux_section.end() || namespaces->is_null()) return uts;
  if (!namespaces->is_array()) return InvalidArgument("linux.namespaces: not an array");
  for (const Json& entry : *namespaces) {
    if (!entry.is_object() || !entry.contains("type") || !entry["type"].is_string()) {
      return InvalidArgument("linux.namespaces: an entry has no type");
    }
    if (entry["type"] == "uts") uts = true;
    if (const auto path = entry.find("path"); path != entry.end()) {
      if (!path->is_string() || (!path->get_ref<const std::string&>().empty() &&
                                 !IsBelow(path->get_ref<const std::string&>(), "/proc"))) {
        return InvalidArgument("linux.namespaces: the path of the {} namespace is not in the guest's /proc",
                               entry["type"].get_ref<const std::string&>());
      }
    }
  }
  return uts;
}

// The list at `key`, made when it is missing.
absl::StatusOr<Json*> ListAt(Json& parent, const char* key, std::string_view what) {
  Json& child = parent[key];
  if (child.is_null()) child = Json::array();
  if (!child.is_array()) return InvalidArgument("{}.{}: not a list", what, key);
  return &child;
}

absl::Status AddDevices(const std::vector<ContainerDevice>& devices, Json& linux_section) {
  if (devices.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(Json * nodes, ListAt(linux_section, "devices", "linux"));
  ASSIGN_OR_RETURN(Json * resources, ObjectAt(linux_section, "resources", "linux"));
  ASSIGN_OR_RETURN(Json * rules, ListAt(*resources, "devices", "linux.resources"));
  for (const ContainerDevice& device : devices) {
    if (device.path.empty() || device.path[0] != '/' || device.path.find('\0') != std::string::npos)
      return InvalidArgument("device \"{:.160}\": want an absolute path", device.path);
    if (device.access.find_first_not_of("rwm") != std::string::npos)
      return InvalidArgument("device {}: access \"{:.16}\", want some of rwm", device.path, device.access);
    nodes->push_back({{"path", device.path},
                      {"type", device.block ? "b" : "c"},
                      {"major", device.major},
                      {"minor", device.minor},
                      {"fileMode", device.mode & 0777},
                      {"uid", device.uid},
                      {"gid", device.gid}});
    if (device.access.empty()) continue;
    rules->push_back({{"allow", true},
                      {"type", device.block ? "b" : "c"},
                      {"major", device.major},
                      {"minor", device.minor},
                      {"access", device.access}});
  }
  return absl::OkStatus();
}

}  // namespace

bool IsBelow(std::string_view path, std::string_view directory) {
  if (path.size() <= directory.size() + 1 || path.substr(0, directory.size()) != directory ||
      path[directory.size()] != '/') {
    return false;
  }
  std::string_view rest = path.substr(directory.size() + 1);
  while (true) {
    const size_t slash = rest.find('/');
    const std::string_view part = rest.substr(0, slash);
    if (part.empty() || part == "." || part == ".." || part.find('\0') != std::string_view::npos)
      return false;
    if (slash == std::string_view::npos) return true;
    rest = rest.substr(slash + 1);
  }
}

absl::StatusOr<PreparedSpec> PrepareSpec(std::string_view spec_json, const SpecContext& context) {
  ASSIGN_OR_RETURN(Json spec, ParseObject(spec_json, "spec"));
  ASSIGN_OR_RETURN(Json * process, ObjectAt(spec, "process", "spec"));
  RETURN_IF_ERROR(AdaptProcess(*process, context.terminal, "process"));
  // crun 1.8 takes 1.0 only, containerd 2 writes 1.2. Later versions of 1 add properties, which a runtime
  // that does not know them must ignore (OCI runtime-spec, "Extensibility").
  if (!spec.contains("ociVersion") || !spec["ociVersion"].is_string() ||
      spec["ociVersion"].get_ref<const std::string&>().rfind("1.", 0) != 0) {
    return InvalidArgument("ociVersion {}: want 1.x",
                           Dump(spec.contains("ociVersion") ? spec["ociVersion"] : Json()).substr(0, 80));
  }
  spec["ociVersion"] = "1.0.2";
  ASSIGN_OR_RETURN(Json * root, ObjectAt(spec, "root", "spec"));
  ASSIGN_OR_RETURN(Json * linux_section, ObjectAt(spec, "linux", "spec"));

  PreparedSpec prepared;
  prepared.rootfs = context.rootfs;
  if (prepared.rootfs.empty()) {
    const auto path = root->find("path");
    if (path == root->end() || !path->is_string() ||
        !IsBelow(path->get_ref<const std::string&>(), context.shared_directory)) {
      return InvalidArgument("root.path: a container without layers wants its root below {}",
                             context.shared_directory);
    }
    prepared.rootfs = path->get<std::string>();
  }
  (*root)["path"] = prepared.rootfs;

  ASSIGN_OR_RETURN(const bool uts, CheckNamespaces(*linux_section));
  if (!uts) {
    spec.erase("hostname");
    spec.erase("domainname");
  }
  (*linux_section)["cgroupsPath"] = "/lamina/" + context.container_id;
  linux_section->erase("intelRdt");
  linux_section->erase("mountLabel");
  spec.erase("hooks");
  if (!spec.contains("mounts")) spec["mounts"] = Json::array();  // optional by the standard, wanted by crun
  if (const auto resources = linux_section->find("resources");
      resources != linux_section->end() && resources->is_object()) {
    AdaptResources(*resources, context.has_huge_pages);
  }
  RETURN_IF_ERROR(AddDevices(context.devices, *linux_section));
  NoteName(prepared.rootfs, context.shared_directory, prepared.shared_names);
  if (const Json& mounts = spec["mounts"]; mounts.is_array()) {
    for (const Json& mount : mounts) {
      const auto source = mount.is_object() ? mount.find("source") : mount.end();
      if (mount.is_object() && source != mount.end() && source->is_string())
        NoteName(source->get_ref<const std::string&>(), context.shared_directory, prepared.shared_names);
    }
  }
  prepared.config_json = Dump(spec);
  return prepared;
}

absl::StatusOr<PreparedProcess> PrepareProcess(std::string_view process_json, bool terminal) {
  ASSIGN_OR_RETURN(Json process, ParseObject(process_json, "process"));
  RETURN_IF_ERROR(AdaptProcess(process, terminal, "process"));
  PreparedProcess prepared;
  if (const auto score = process.find("oomScoreAdj"); score != process.end()) {
    const bool fits = score->is_number_unsigned()
                          ? score->get<uint64_t>() <= 1000
                          : score->is_number_integer() && score->get<int64_t>() >= -1000;
    if (!fits) {
      return InvalidArgument("process.oomScoreAdj {}: want a number from -1000 to 1000",
                             Dump(*score).substr(0, 80));
    }
    prepared.oom_score_adj = score->get<int>();
  }
  prepared.json = Dump(process);
  return prepared;
}

absl::StatusOr<std::string> PrepareResources(std::string_view resources_json,
                                             const std::function<bool(std::string_view)>& has_huge_pages) {
  ASSIGN_OR_RETURN(Json resources, ParseObject(resources_json, "resources"));
  AdaptResources(resources, has_huge_pages);
  return Dump(resources);
}

}  // namespace lamina::guest
