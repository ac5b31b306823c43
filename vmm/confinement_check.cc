#include "vmm/confinement_check.h"

#include <algorithm>

#include "base/status.h"
#include "vmm/virtiofsd_confinement.h"

namespace lamina::vmm {
namespace {

// What every process of a pod is without.
void CheckCommon(const ProcessRights& rights, const std::set<std::string>& namespaces,
                 std::vector<std::string>& excess) {
  if (!rights.no_new_privs) excess.emplace_back("no_new_privs is not set");
  if (!rights.filtered) excess.emplace_back("no seccomp filter");
  if (rights.core_bytes != 0) excess.emplace_back("it may leave a core file");
  std::vector<std::string> shared;
  std::set_difference(namespaces.begin(), namespaces.end(), rights.namespaces.begin(),
                      rights.namespaces.end(), std::back_inserter(shared));
  if (!shared.empty()) excess.push_back(fmt::format("the node's namespaces {}", fmt::join(shared, ", ")));
  if (!rights.own_root) excess.emplace_back("the node's root directory");
  std::vector<std::string> seen;
  for (const char* name : {"boot", "etc", "sys"}) {
    if (std::binary_search(rights.root.begin(), rights.root.end(), name)) seen.push_back(name);
  }
  if (rights.own_root && !seen.empty())
    excess.push_back(fmt::format("/{} in its root directory", fmt::join(seen, ", /")));
  for (const std::string& variable : rights.environment) {
    const std::string name = variable.substr(0, variable.find('='));
    if (name != "PATH" && name != "MALLOC_ARENA_MAX") excess.push_back("the environment's " + name);
  }
}

}  // namespace

std::vector<std::string> QemuExcess(const ProcessRights& rights, const UserRange& users) {
  std::vector<std::string> excess;
  if (rights.users.size() != 1 || *rights.users.begin() < users.first || *rights.users.begin() > users.last) {
    excess.push_back(fmt::format("the user {}, none of hypervisor.users", fmt::join(rights.users, ", ")));
  } else if (rights.groups != rights.users) {
    excess.push_back(fmt::format("the groups {}", fmt::join(rights.groups, ", ")));
  }
  if (const uint64_t held = rights.capabilities | rights.bounding; held != 0)
    excess.push_back(fmt::format("capabilities {:#x}", held));
  CheckCommon(rights, {"mnt", "pid", "ipc", "uts", "net"}, excess);
  return excess;
}

std::vector<std::string> VirtiofsdExcess(const ProcessRights& rights) {
  std::vector<std::string> excess;
  if (rights.groups != std::set<uid_t>{0})
    excess.push_back(fmt::format("the groups {}", fmt::join(rights.groups, ", ")));
  if (const uint64_t held = (rights.capabilities & ~kVirtiofsdCapabilities) | rights.bounding; held != 0)
    excess.push_back(fmt::format("capabilities {:#x}", held));
  CheckCommon(rights, {"mnt", "pid", "ipc", "uts", "net"}, excess);
  return excess;
}

}  // namespace lamina::vmm
