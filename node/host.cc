#include "node/host.h"

#include <poll.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <sstream>

#include "base/clock.h"
#include "base/file_system.h"
#include "base/proc.h"
#include "base/process.h"
#include "base/status.h"
#include "vmm/balloon_door.h"

namespace lamina::node {
namespace {

constexpr size_t kProcLimit = 65536;
constexpr std::chrono::milliseconds kBalloonTimeout{2300};  // QEMU's two seconds, and the shim's way there

// "max", and version 1's huge number, are no limit.
uint64_t ReadLimit(const std::string& path) {
  const std::string text = FileSystem::Real().Read(path, 4096).value_or("");
  uint64_t value = 0;
  return std::from_chars(text.data(), text.data() + text.size(), value).ec == std::errc() ? value
                                                                                          : UINT64_MAX;
}

class RealHost : public Host {
 public:
  bool Alive(int64_t pid, uint64_t start_time) override {
    return pid > 0 && start_time != 0 && ProcessAlive(static_cast<pid_t>(pid), start_time);
  }
  std::string BootId() override { return lamina::BootId(); }
  uint64_t ResidentBytes(int64_t pid) override {
    const std::string text =
        FileSystem::Real().Read(fmt::format("/proc/{}/status", pid), kProcLimit).value_or("");
    return KernelBytes(text, "RssAnon") + KernelBytes(text, "RssShmem") + KernelBytes(text, "HugetlbPages");
  }
  uint64_t MemTotalBytes() override {
    uint64_t total = KernelBytes(Meminfo(), "MemTotal");
    for (const auto& [v2, path] : Cgroups()) total = std::min(total, ReadLimit(LimitFile(v2, path)));
    return total;
  }
  MemoryLeft Left() override {
    MemoryLeft left{KernelBytes(Meminfo(), "MemAvailable"), "the node"};
    for (const auto& [v2, path] : Cgroups()) {
      const std::string dir = CgroupDir(v2, path);
      const uint64_t bytes =
          CgroupLeft(v2, ReadLimit(LimitFile(v2, path)),
                     ReadLimit(dir + (v2 ? "/memory.current" : "/memory.usage_in_bytes")),
                     FileSystem::Real().Read(dir + "/memory.stat", kProcLimit).value_or(""));
      if (bytes < left.bytes) left = {bytes, "the cgroup " + dir};
    }
    return left;
  }
  std::map<uint32_t, NumaMemory> NumaNodes() override { return ReadNumaNodes("/sys/devices/system/node"); }
  absl::StatusOr<std::unique_ptr<vmm::Balloon>> OpenBalloon(const std::string& runtime_dir) override {
    return vmm::ConnectBalloon(runtime_dir, kBalloonTimeout);
  }
  void Nap(std::chrono::milliseconds time) override { poll(nullptr, 0, static_cast<int>(time.count())); }

 private:
  static std::string Meminfo() { return FileSystem::Real().Read("/proc/meminfo", kProcLimit).value_or(""); }
  static std::vector<std::pair<bool, std::string>> Cgroups() {
    auto found = PodCgroups(FileSystem::Real().Read("/proc/self/cgroup", kProcLimit).value_or(""));
    for (const auto& kubepods : Kubepods("/sys/fs/cgroup")) {
      if (std::find(found.begin(), found.end(), kubepods) == found.end()) found.push_back(kubepods);
    }
    return found;
  }
  static std::string CgroupDir(bool v2, const std::string& path) {
    return (v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory") + path;
  }
  static std::string LimitFile(bool v2, const std::string& path) {
    return CgroupDir(v2, path) + (v2 ? "/memory.max" : "/memory.limit_in_bytes");
  }
};

}  // namespace

uint64_t CgroupLeft(bool v2, uint64_t limit, uint64_t usage, const std::string& stat) {
  if (limit == UINT64_MAX || usage == UINT64_MAX) return UINT64_MAX;
  const std::string key = v2 ? "inactive_file " : "total_inactive_file ";
  uint64_t cache = 0;
  std::istringstream lines(stat);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(key, 0) == 0) cache = strtoull(line.c_str() + key.size(), nullptr, 10);
  }
  const uint64_t used = usage - std::min(usage, cache);
  return limit - std::min(limit, used);
}

std::vector<std::pair<bool, std::string>> PodCgroups(const std::string& text) {
  std::vector<std::pair<bool, std::string>> found;
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    const size_t first = line.find(':'),
                 second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",",
                      path = line.substr(second + 1);
    const bool v2 = line.rfind("0::", 0) == 0;
    if (!v2 && controllers.find(",memory,") == std::string::npos) continue;
    found.emplace_back(v2, "");
    for (size_t slash = path.find('/', 1); slash != std::string::npos; slash = path.find('/', slash + 1)) {
      const std::string parent = path.substr(0, slash);
      found.emplace_back(v2, parent);
      if (parent.compare(parent.rfind('/') + 1, 8, "kubepods") == 0) break;
    }
  }
  return found;
}

std::vector<std::pair<bool, std::string>> Kubepods(const std::string& root) {
  std::vector<std::pair<bool, std::string>> found;
  for (const char* path : {"/kubepods.slice", "/kubepods"}) {
    if (FileSystem::Real().Exists(root + path + "/memory.max")) found.emplace_back(true, path);
    if (FileSystem::Real().Exists(root + "/memory" + path + "/memory.limit_in_bytes"))
      found.emplace_back(false, path);
  }
  return found;
}

std::map<uint32_t, NumaMemory> ReadNumaNodes(const std::string& root) {
  constexpr std::string_view kPrefix = "node";
  std::map<uint32_t, NumaMemory> nodes;
  for (const std::string& name : FileSystem::Real().List(root).value_or(std::vector<std::string>())) {
    uint32_t node = 0;
    const char* const end = name.data() + name.size();
    if (name.rfind(kPrefix, 0) != 0) continue;
    const auto [at, error] = std::from_chars(name.data() + kPrefix.size(), end, node);
    if (error != std::errc() || at != end || node > sizing::kMaxNumaNode) continue;
    const std::string text =
        FileSystem::Real().Read(fmt::format("{}/{}/meminfo", root, name), kProcLimit).value_or("");
    NumaMemory memory;
    memory.total_bytes = KernelBytes(text, "MemTotal");
    for (const char* key : {"MemFree", "Active(file)", "Inactive(file)", "SReclaimable"})
      memory.left_bytes += KernelBytes(text, key);
    if (memory.total_bytes > 0) nodes[node] = memory;
  }
  return nodes;
}

std::string HiddenCgroups(const std::string& cgroup_namespace, const std::string& root) {
  // The number of the host's own, fixed in the kernel (PROC_CGROUP_INIT_INO).
  if (cgroup_namespace.empty() || cgroup_namespace == "cgroup:[4026531835]" || !Kubepods(root).empty())
    return "";
  return fmt::format(
      "laminad runs in a cgroup namespace of its own ({}) and finds no kubepods in {}: a limit of the node's "
      "pods is not seen; run it privileged, mount the host's /sys/fs/cgroup, or set memory.capacity",
      cgroup_namespace, root);
}

Host& Host::Real() {
  static RealHost host;
  return host;
}

}  // namespace lamina::node
