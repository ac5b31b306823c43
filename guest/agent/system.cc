#include "guest/agent/system.h"

#include <fcntl.h>
#include <linux/random.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <exception>
#include <thread>
#include <vector>

#include "base/log.h"
#include "base/proc.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "guest/agent/files.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"

namespace lamina::guest {
namespace {

constexpr char kCpus[] = "/sys/devices/system/cpu";

absl::StatusOr<std::vector<uint32_t>> CpuList(const char* file) {
  const std::string path = fmt::format("{}/{}", kCpus, file);
  ASSIGN_OR_RETURN(const std::string text, ReadKernelFile(path));
  return ParseCpuList(text);
}

void DieByPowerOff(int signal) {
  static const char kText[] = "lamina-agent: fatal signal, powering off\n";
  [[maybe_unused]] const ssize_t n = write(2, kText, sizeof kText - 1);
  reboot(RB_POWER_OFF);
  _exit(128 + signal);
}

}  // namespace

absl::Status SeedRandom(std::string_view seed) {
  if (seed.empty()) return absl::OkStatus();
  if (seed.size() > kMaxRandomSeedBytes)
    return InvalidArgument("random seed of {} bytes, over {}", seed.size(), kMaxRandomSeedBytes);
  UniqueFd fd(open("/dev/urandom", O_RDWR | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "open /dev/urandom");
  struct {
    int entropy_bits, bytes;
    char data[kMaxRandomSeedBytes];
  } pool{};
  pool.entropy_bits = static_cast<int>(seed.size()) * 8;
  pool.bytes = static_cast<int>(seed.size());
  std::memcpy(pool.data, seed.data(), seed.size());
  if (ioctl(fd.get(), RNDADDENTROPY, &pool) != 0) return ErrnoStatus(errno, "seed the random pool");
  return absl::OkStatus();
}

absl::Status SetHostname(const std::string& name) {
  if (name.empty()) return absl::OkStatus();
  if (name.size() > 64) return InvalidArgument("hostname of {} bytes, over 64", name.size());
  if (sethostname(name.data(), name.size()) != 0) return ErrnoStatus(errno, "set the hostname");
  return absl::OkStatus();
}

absl::StatusOr<std::string> SysctlPath(std::string_view name) {
  std::string path(name.substr(0, 256));
  // As sysctl(8): if the first separator is a dot, dots separate and slashes stand for dots (interface
  // names).
  const size_t first = path.find_first_of("./");
  if (first != std::string::npos && path[first] == '.') {
    for (char& c : path) c = c == '.' ? '/' : c == '/' ? '.' : c;
  }
  size_t start = 0;
  while (start <= path.size()) {
    const size_t end = std::min(path.find('/', start), path.size());
    const std::string_view part(path.data() + start, end - start);
    const bool fine =
        !part.empty() && part[0] != '.' &&
        part.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:@") ==
            std::string_view::npos;
    if (!fine || name.size() > 256)
      return InvalidArgument("\"{}\" is not the name of a sysctl", name.substr(0, 80));
    start = end + 1;
  }
  return "/proc/sys/" + path;
}

absl::Status SetSysctl(std::string_view name, std::string_view value) {
  ASSIGN_OR_RETURN(const std::string path, SysctlPath(name));
  return WriteKernelFile(path, value);
}

double BootSeconds() {
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

uint32_t OnlineVcpus() {
  const auto cpus = CpuList("online");
  return cpus.ok() ? static_cast<uint32_t>(cpus->size()) : 1;
}

uint64_t MemTotalBytes() {
  const auto text = ReadKernelFile("/proc/meminfo");
  return text.ok() ? KernelBytes(*text, "MemTotal") : 0;
}

agent::v1::GuestInfoResponse GuestInfo() {
  agent::v1::GuestInfoResponse info;
  info.set_online_vcpus(OnlineVcpus());
  if (const auto text = ReadKernelFile("/proc/meminfo"); text.ok()) {
    info.set_mem_total_bytes(KernelBytes(*text, "MemTotal"));
    info.set_mem_available_bytes(KernelBytes(*text, "MemAvailable"));
    info.set_page_cache_bytes(KernelBytes(*text, "Cached"));
  }
  if (const auto text = ReadKernelFile("/proc/self/status"); text.ok()) {
    info.set_agent_rss_bytes(KernelBytes(*text, "VmRSS"));
  }
  if (const auto text = ReadKernelFile("/proc/self/mounts"); text.ok())
    info.set_mounts(text->substr(0, kMaxMountsBytes));
  return info;
}

absl::StatusOr<uint32_t> SetVcpus(uint32_t wanted) {
  if (wanted == 0) return InvalidArgument("a guest has at least 1 vCPU");
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(3);
  for (;;) {
    ASSIGN_OR_RETURN(const std::vector<uint32_t> present, CpuList("present"));
    ASSIGN_OR_RETURN(const std::vector<uint32_t> online, CpuList("online"));
    auto count = static_cast<uint32_t>(online.size());
    const auto set = [&](uint32_t cpu, const char* value) {
      return WriteKernelFile(fmt::format("{}/cpu{}/online", kCpus, cpu), value);
    };
    for (const uint32_t cpu : present) {
      if (count >= wanted) break;
      if (std::find(online.begin(), online.end(), cpu) != online.end()) continue;
      if (const absl::Status status = set(cpu, "1"); status.ok()) {
        ++count;
      } else {
        LogWarning("{}", Message(status));
      }
    }
    for (auto cpu = online.rbegin(); cpu != online.rend() && count > wanted && *cpu != 0; ++cpu) {
      RETURN_IF_ERROR(set(*cpu, "0"));
      --count;
    }
    if (count == wanted || std::chrono::steady_clock::now() >= deadline) return OnlineVcpus();
    // The ACPI event of a hotplugged vCPU sends no uevent before the CPU is there: look again.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

bool IsMountPoint(const std::string& path) {
  struct stat own, parent;
  return stat(path.c_str(), &own) == 0 && stat((path + "/..").c_str(), &parent) == 0 &&
         own.st_dev != parent.st_dev;
}

absl::Status MountTmpfs(const std::string& target, uint64_t bytes, int mode) {
  if (mkdir(target.c_str(), 0755) != 0 && errno != EEXIST) return ErrnoStatus(errno, "mkdir " + target);
  const bool again = IsMountPoint(target);
  const std::string options = fmt::format("size={},mode={:o}", bytes, mode);
  const unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | (again ? MS_REMOUNT : 0);
  if (mount("tmpfs", target.c_str(), "tmpfs", flags, options.c_str()) != 0) {
    return ErrnoStatus(errno, "mount a tmpfs on " + target);
  }
  return absl::OkStatus();
}

absl::Status MountVirtiofs(const std::string& tag, const std::string& target) {
  if (tag.size() > 36 || tag.find_first_of("/,") != std::string::npos) {
    return InvalidArgument("\"{}\" is not a virtiofs tag", tag.substr(0, 64));
  }
  if (mkdir(target.c_str(), 0755) != 0 && errno != EEXIST) return ErrnoStatus(errno, "mkdir " + target);
  if (IsMountPoint(target)) return absl::OkStatus();
  if (mount(tag.c_str(), target.c_str(), "virtiofs", 0, nullptr) != 0) {
    return ErrnoStatus(errno, fmt::format("mount the virtiofs {} on {}", tag, target));
  }
  return absl::OkStatus();
}

void PowerOff() {
  reboot(RB_POWER_OFF);
  // Without the right to do so there is nothing better than to stay.
  for (;;) pause();
}

void PowerOffWhenDying() {
  struct sigaction action {};
  action.sa_handler = DieByPowerOff;
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT}) sigaction(signal, &action, nullptr);
  std::set_terminate([] { DieByPowerOff(SIGABRT); });
}

}  // namespace lamina::guest
