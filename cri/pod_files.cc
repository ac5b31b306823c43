#include "cri/pod_files.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "base/file_system.h"
#include "base/log.h"
#include "base/status.h"
#include "cri/oci_spec.h"
#include "guest/protocol/contract.h"

namespace lamina::cri {
namespace {

using nlohmann::json;

constexpr std::array<const char*, 3> kNames = {"hostname", "hosts", "resolv.conf"};

std::string SourceOf(const std::string& name) {
  return fmt::format("{}/{}", guest::kPodFilesDirectory, name);
}

std::string DestinationOf(const std::string& name) { return "/etc/" + name; }

std::string NodesOwn(const std::string& path) {
  const absl::StatusOr<std::string> content = FileSystem::Real().Read(path, guest::kMaxPodFileBytes);
  // A node may have none.
  if (!content.ok() && !absl::IsNotFound(content.status()))
    LogWarning("the pod's {} is empty: {}", path, Message(content.status()));
  return content.value_or("");
}

}  // namespace

absl::StatusOr<std::map<std::string, std::string>> PodFileContents(const PodFiles& files) {
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
  const std::map<std::string, std::string> contents = {
      {"hostname", hostname + "\n"}, {"hosts", NodesOwn("/etc/hosts")}, {"resolv.conf", resolver}};
  for (const auto& [name, content] : contents) {
    if (content.size() > guest::kMaxPodFileBytes) {
      return InvalidArgument("the pod's {} has {} bytes, a guest takes {}", DestinationOf(name),
                             content.size(), guest::kMaxPodFileBytes);
    }
  }
  return contents;
}

bool IsPodFileMount(const std::string& source, const std::string& destination) {
  return std::any_of(kNames.begin(), kNames.end(), [&](const char* name) {
    return source == SourceOf(name) && destination == DestinationOf(name);
  });
}

absl::StatusOr<std::string> WithPodFiles(const std::string& text, const std::string& what) {
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
    const std::string destination = DestinationOf(name);
    if (mounted(destination)) continue;
    mounts.push_back({{"destination", destination},
                      {"type", "bind"},
                      {"source", SourceOf(name)},
                      {"options", {"rbind", "rprivate", read_only ? "ro" : "rw"}}});
  }
  return root.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace lamina::cri
