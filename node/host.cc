// The real host behind NodeState: /proc and the cgroups.
#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <sstream>

#include "base/status.h"
#include "base/subprocess.h"
#include "node/node_state.h"

namespace lamina::node {
namespace {

constexpr size_t kProcLimit = 65536;

// "MemTotal:  24 kB" -> bytes; 0 when the key is missing.
uint64_t KilobytesOf(const std::string& text, const std::string& key) {
  const size_t at = text.find(key + ":");
  return at == std::string::npos ? 0 : strtoull(text.c_str() + at + key.size() + 1, nullptr, 10) * 1024;
}

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
  uint64_t ResidentBytes(int64_t pid) override {
    const std::string text =
        FileSystem::Real().Read(fmt::format("/proc/{}/status", pid), kProcLimit).value_or("");
    return KilobytesOf(text, "RssAnon") + KilobytesOf(text, "RssShmem") + KilobytesOf(text, "HugetlbPages");
  }
  uint64_t MemTotalBytes() override {
    uint64_t total = KilobytesOf(Meminfo(), "MemTotal");
    for (const auto& [v2, path] :
         PodCgroups(FileSystem::Real().Read("/proc/self/cgroup", kProcLimit).value_or(""))) {
      total = std::min(total, ReadLimit(v2 ? "/sys/fs/cgroup" + path + "/memory.max"
                                           : "/sys/fs/cgroup/memory" + path + "/memory.limit_in_bytes"));
    }
    return total;
  }
  uint64_t MemAvailableBytes() override { return KilobytesOf(Meminfo(), "MemAvailable"); }

 private:
  static std::string Meminfo() { return FileSystem::Real().Read("/proc/meminfo", kProcLimit).value_or(""); }
};

}  // namespace

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

Host& Host::Real() {
  static RealHost host;
  return host;
}

}  // namespace lamina::node
