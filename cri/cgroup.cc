#include "cri/cgroup.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <sstream>

#include "base/file_system.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace lamina::cri {
namespace {

constexpr long kCgroup2Magic = 0x63677270;

// "a-b-c.slice" stands in "a.slice/a-b.slice".
std::string ExpandSlice(const std::string& slice) {
  const std::string suffix = ".slice";
  if (slice.size() <= suffix.size() ||
      slice.compare(slice.size() - suffix.size(), suffix.size(), suffix) != 0)
    return slice;
  if (slice == "-.slice") return "";  // the root
  const std::string stem = slice.substr(0, slice.size() - suffix.size());
  std::string path;
  for (size_t dash = stem.find('-'); dash != std::string::npos; dash = stem.find('-', dash + 1)) {
    path += stem.substr(0, dash) + suffix + "/";
  }
  return path + slice;
}

bool IsCgroup2(const std::string& path) {
  struct statfs info {};
  return statfs(path.c_str(), &info) == 0 && info.f_type == kCgroup2Magic;
}

// A new cpuset of v1 takes no process until it has CPUs and memory nodes.
void InheritCpuset(const std::string& dir) {
  FileSystem& fs = FileSystem::Real();
  for (const char* file : {"/cpuset.cpus", "/cpuset.mems"}) {
    const std::string mine = fs.Read(dir + file, 4096).value_or("\n");
    if (mine.size() > 1) continue;
    const std::string parent = fs.Read(dir.substr(0, dir.rfind('/')) + file, 4096).value_or("");
    if (!parent.empty()) fs.WriteAndSync(dir + file, parent, 0644).IgnoreError();
  }
}

// What the sandbox's own cgroup of v2 limits (host_limits.h) must be passed on by those above it. The kubelet
// and systemd do so for theirs; where one can't, its children have no such file.
void PassOnControllers(const std::string& dir) {
  for (const char* controller : {"+memory", "+pids"})
    WriteCgroupFile(dir + "/cgroup.subtree_control", controller).IgnoreError();
}

bool Lists(const std::string& dir, pid_t pid) {
  std::istringstream pids(FileSystem::Real().Read(dir + "/cgroup.procs", 1 << 20).value_or(""));
  for (pid_t listed; pids >> listed;) {
    if (listed == pid) return true;
  }
  return false;
}

// Kills the processes of the directory and waits until they have ended, or the deadline has.
void EndProcessesIn(const std::string& dir, std::chrono::steady_clock::time_point deadline) {
  std::istringstream pids(FileSystem::Real().Read(dir + "/cgroup.procs", 1 << 20).value_or(""));
  bool any = false;
  for (pid_t pid; pids >> pid;) {
    if (pid <= 0 || pid == getpid()) continue;  // 0: of another pid namespace
    const UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    // The descriptor names one process for ever; by now the number may be another's, who is not of this
    // cgroup.
    if (!pidfd || !Lists(dir, pid)) continue;
    any = true;
    syscall(SYS_pidfd_send_signal, pidfd.get(), SIGKILL, nullptr, 0);
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd poll_fd{pidfd.get(), POLLIN, 0};
    poll(&poll_fd, 1, static_cast<int>(std::max<int64_t>(left.count(), 0)));
  }
  // Nobody to wait for: a dying thread is listed no more and has not left yet, for an instant.
  if (!any) poll(nullptr, 0, 1);
}

}  // namespace

absl::Status WriteCgroupFile(const std::string& file, const std::string& value) {
  const UniqueFd fd(open(file.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC));
  if (!fd || write(fd.get(), value.data(), value.size()) != static_cast<ssize_t>(value.size()))
    return ErrnoStatus(errno, fmt::format("write {} into {}", value, file));
  return absl::OkStatus();
}

std::vector<std::string> HostCgroup::procs_files() const {
  std::vector<std::string> files;
  for (const std::string& dir : dirs) files.push_back(dir + "/cgroup.procs");
  return files;
}

absl::StatusOr<std::string> CgroupPath(const std::string& cgroups_path) {
  std::string path = cgroups_path;
  const size_t first = path.find(':'),
               second = first == std::string::npos ? first : path.find(':', first + 1);
  if (second != std::string::npos) {
    const std::string slice = path.substr(0, first), prefix = path.substr(first + 1, second - first - 1),
                      name = path.substr(second + 1);
    const std::string parent = ExpandSlice(slice.empty() ? "system.slice" : slice);
    path =
        (parent.empty() ? "/" : "/" + parent + "/") + (prefix.empty() ? "" : prefix + "-") + name + ".scope";
  }
  if (path.empty()) return InvalidArgument("linux.cgroupsPath is empty");
  if (path[0] != '/') path = "/" + path;
  for (size_t start = 1; start <= path.size();) {
    const size_t end = std::min(path.find('/', start), path.size());
    const std::string part = path.substr(start, end - start);
    if (part.empty() || part == "." || part == "..")
      return InvalidArgument("linux.cgroupsPath \"{}\": not a plain path", cgroups_path);
    start = end + 1;
  }
  return path;
}

HostCgroup HostCgroupAt(const std::string& root, const std::string& path) {
  if (IsCgroup2(root)) return {{root + path}};
  HostCgroup cgroup;
  const absl::StatusOr<std::vector<std::string>> names = FileSystem::Real().List(root);
  for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
    struct stat info {};
    const std::string dir = root + "/" + name;
    if (lstat(dir.c_str(), &info) == 0 && S_ISDIR(info.st_mode) &&
        FileSystem::Real().Exists(dir + "/cgroup.procs")) {
      cgroup.dirs.push_back(dir + path);
    }
  }
  return cgroup;
}

absl::StatusOr<HostCgroup> MakeHostCgroup(const std::string& root, const std::string& path) {
  const HostCgroup cgroup = HostCgroupAt(root, path);
  for (const std::string& dir : cgroup.dirs) {
    const std::string hierarchy = dir.substr(0, dir.size() - path.size());
    for (size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
      const std::string part = hierarchy + path.substr(0, end);
      if (mkdir(part.c_str(), 0755) != 0 && errno != EEXIST) {
        const absl::Status status = ErrnoStatus(errno, "make cgroup " + part);
        RemoveHostCgroup(cgroup.dirs, std::chrono::seconds(0)).IgnoreError();
        return status;
      }
      if (hierarchy.size() >= 6 && hierarchy.compare(hierarchy.size() - 6, 6, "cpuset") == 0)
        InheritCpuset(part);
      if (end == std::string::npos) break;
      PassOnControllers(part);
    }
  }
  return cgroup;
}

sizing::CgroupLimits PodCgroupLimits(const std::string& root, const std::string& path) {
  sizing::CgroupLimits limits;
  const std::string pod = path.substr(0, path.rfind('/'));
  if (pod.empty()) return limits;  // the root has no limit of its own
  const auto read = [&](const char* v2, const std::string& v1) {
    absl::StatusOr<std::string> text = FileSystem::Real().Read(root + pod + v2, 64);
    if (!text.ok()) text = FileSystem::Real().Read(root + v1, 64);
    return text.value_or("");
  };
  const auto number = [](std::string_view text) -> std::optional<int64_t> {
    int64_t value = 0;
    if (std::from_chars(text.data(), text.data() + text.size(), value).ec != std::errc()) return std::nullopt;
    return value;
  };
  // cgroup v2 says "max"; v1 says the largest whole page below 2^63, and -1 for CPUs.
  const auto bytes = number(read("/memory.max", "/memory" + pod + "/memory.limit_in_bytes"));
  if (bytes && *bytes >= 0 && *bytes < (int64_t{1} << 62))
    limits.memory_bytes = static_cast<uint64_t>(*bytes);
  std::string cpu = read("/cpu.max", "/cpu" + pod + "/cpu.cfs_quota_us");
  if (cpu.find(' ') == std::string::npos)
    cpu += " " + FileSystem::Real().Read(root + "/cpu" + pod + "/cpu.cfs_period_us", 64).value_or("");
  const auto quota = number(cpu), period = number(std::string_view(cpu).substr(cpu.find(' ') + 1));
  if (quota && *quota > 0 && period && *period > 0)
    limits.nano_cpus = static_cast<int64_t>(static_cast<__int128>(*quota) * 1'000'000'000 / *period);
  return limits;
}

absl::Status RemoveHostCgroup(const std::vector<std::string>& dirs, std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  absl::Status first;
  for (const std::string& dir : dirs) {
    absl::Status status;
    do {
      if (rmdir(dir.c_str()) == 0 || errno == ENOENT) {
        status = absl::OkStatus();
        break;
      }
      if (errno != EBUSY) {
        status = ErrnoStatus(errno, "remove cgroup " + dir);
        break;
      }
      status = MakeStatus(absl::StatusCode::kDeadlineExceeded, "remove cgroup {}: it is still in use", dir);
      EndProcessesIn(dir, deadline);
    } while (std::chrono::steady_clock::now() < deadline);
    if (first.ok()) first = status;
  }
  return first;
}

}  // namespace lamina::cri
