#include "cri/pod_files.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "base/file_system.h"
#include "base/status.h"
#include "base/units.h"
#include "cri/oci_spec.h"

namespace lamina::cri {
namespace {

using nlohmann::json;

constexpr std::array<const char*, 3> kNames = {"hostname", "hosts", "resolv.conf"};

std::string NodesOwn(const std::string& path) {
  return FileSystem::Real().Read(path, kMiB).value_or("");  // a node may have none
}

}  // namespace

absl::Status WritePodFiles(const std::string& dir, const PodFiles& files) {
  std::string hostname = files.hostname;
  if (hostname.empty()) {
    char name[256] = "";
    if (gethostname(name, sizeof name - 1) != 0) return ErrnoStatus(errno, "ask for the node's name");
    hostname = name;
  }
  std::string resolver;
  if (!files.dns_searches.empty()) resolver += fmt::format("search {}\n", fmt::join(files.dns_searches, " "));
  for (const std::string& server : files.dns_servers) resolver += fmt::format("nameserver {}\n", server);
  if (!files.dns_options.empty()) resolver += fmt::format("options {}\n", fmt::join(files.dns_options, " "));
  if (resolver.empty()) resolver = NodesOwn("/etc/resolv.conf");
  FileSystem& fs = FileSystem::Real();
  RETURN_IF_ERROR(fs.MakeDirectories(dir, 0700));
  const std::array<std::string, 3> contents = {hostname + "\n", NodesOwn("/etc/hosts"), resolver};
  for (size_t i = 0; i < kNames.size(); ++i)
    RETURN_IF_ERROR(WriteFileAtomically(fs, fmt::format("{}/{}", dir, kNames[i]), contents[i], 0644));
  return absl::OkStatus();
}

absl::StatusOr<std::string> WithPodFiles(const std::string& text, const std::string& dir,
                                         const std::string& what) {
  ASSIGN_OR_RETURN(const BundleSpec spec, ParseSpec(text, what));
  json root = json::parse(text);
  const auto mounted = [&](const std::string& destination) {
    for (const SpecMount& mount : spec.mounts) {
      if (mount.destination == destination) return true;
    }
    return false;
  };
  json& mounts = root["mounts"];
  if (!mounts.is_array()) mounts = json::array();
  for (size_t i = 0; i < spec.mounts.size(); ++i) {
    if (spec.mounts[i].destination == "/dev/shm" && spec.mounts[i].type == "tmpfs")
      mounts[i] = {{"destination", "/dev/shm"},
                   {"type", "bind"},
                   {"source", "/dev/shm"},
                   {"options", {"rbind", "rw"}}};
  }
  const auto root_part = root.find("root");
  const bool read_only = root_part != root.end() && root_part->is_object() &&
                         root_part->contains("readonly") && (*root_part)["readonly"] == true;
  for (const char* name : kNames) {
    const std::string destination = fmt::format("/etc/{}", name);
    if (mounted(destination)) continue;
    mounts.push_back({{"destination", destination},
                      {"type", "bind"},
                      {"source", fmt::format("{}/{}", dir, name)},
                      {"options", {"rbind", "rprivate", read_only ? "ro" : "rw"}}});
  }
  return root.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace lamina::cri
