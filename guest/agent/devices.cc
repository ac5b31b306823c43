#include "guest/agent/devices.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "base/file_system.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/status.h"
#include "base/ttrpc/thread.h"
#include "base/unique_fd.h"
#include "guest/agent/files.h"

namespace lamina::guest {
namespace {

std::vector<std::string> ListDirectory(const std::string& path) {
  std::vector<std::string> names;
  DIR* dir = opendir(path.c_str());
  if (dir == nullptr) return names;
  while (const dirent* entry = readdir(dir)) {
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  closedir(dir);
  std::sort(names.begin(), names.end());
  return names;
}

std::string RealPath(const std::string& path) {
  char buffer[PATH_MAX];
  return realpath(path.c_str(), buffer) == nullptr ? "" : buffer;
}

bool IsHex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }

template <typename... Args>
absl::Status NotFound(fmt::format_string<Args...> format, Args&&... args) {
  return MakeStatus(absl::StatusCode::kNotFound, format, std::forward<Args>(args)...);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ParsePciPath(std::string_view path) {
  std::vector<std::string> slots;
  std::string_view rest = path;
  while (!rest.empty()) {
    const size_t slash = rest.find('/');
    const std::string_view slot = rest.substr(0, slash);
    rest = slash == std::string_view::npos ? std::string_view() : rest.substr(slash + 1);
    const bool fine = slot.size() == 4 && IsHex(slot[0]) && IsHex(slot[1]) && slot[0] <= '1' &&
                      slot[2] == '.' && slot[3] >= '0' && slot[3] <= '7';
    if (!fine || (slash != std::string_view::npos && rest.empty())) {
      slots.clear();
      break;
    }
    slots.emplace_back(slot);
  }
  if (slots.empty() || slots.size() > 8) {
    return InvalidArgument("PCI path \"{}\": want slots like \"04.0/00.0\"", path.substr(0, 80));
  }
  return slots;
}

std::map<std::string, std::string> ParseUevent(std::string_view datagram) {
  std::map<std::string, std::string> variables;
  bool first = true;
  while (!datagram.empty()) {
    const size_t zero = datagram.find('\0');
    const std::string_view item = datagram.substr(0, zero);
    datagram = zero == std::string_view::npos ? std::string_view() : datagram.substr(zero + 1);
    if (first && item.find('@') == std::string_view::npos) return {};
    const size_t equals = item.find('=');
    if (!first && equals != std::string_view::npos && equals > 0) {
      variables.emplace(item.substr(0, equals), item.substr(equals + 1));
    }
    first = false;
  }
  return variables;
}

absl::StatusOr<std::string> Sysfs::FindPci(std::string_view pci_path) const {
  ASSIGN_OR_RETURN(const std::vector<std::string> slots, ParsePciPath(pci_path));
  std::string path = root_ + "/devices/pci0000:00/0000:00:" + slots[0];
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return NotFound("no PCI device at {}", pci_path);
  for (size_t i = 1; i < slots.size(); ++i) {
    std::string next;
    for (const std::string& name : ListDirectory(path)) {
      // "0000:01:00.0"
      if (name.size() == 12 && name.compare(0, 5, "0000:") == 0 && name[7] == ':' &&
          name.substr(8) == slots[i]) {
        next = name;
        break;
      }
    }
    if (next.empty()) return NotFound("no PCI device at {} (nothing in slot {})", pci_path, slots[i]);
    path += "/" + next;
  }
  const std::string real = RealPath(path);
  if (real.empty()) return NotFound("no PCI device at {}", pci_path);
  return real;
}

absl::StatusOr<std::string> Sysfs::FindBlockBelow(const std::string& device, const std::string& part,
                                                  std::string_view driver) const {
  for (const std::string& name : ListDirectory(root_ + "/block")) {
    // There may be a thousand dm devices, and a real path is a dozen system calls.
    if (name.compare(0, driver.size(), driver) != 0) continue;
    const std::string real = RealPath(root_ + "/block/" + name);
    if (real.compare(0, device.size() + 1, device + "/") == 0 &&
        real.find(part, device.size()) != std::string::npos) {
      return name;
    }
  }
  return NotFound("no block device with {} below {}", part, device);
}

absl::StatusOr<std::string> Sysfs::FindPmem(std::string_view pci_path) const {
  ASSIGN_OR_RETURN(const std::string device, FindPci(pci_path));
  return FindBlockBelow(device, "/block/pmem", "pmem");
}

absl::StatusOr<std::string> Sysfs::FindScsiDisk(std::string_view pci_path, uint32_t target,
                                                uint32_t lun) const {
  ASSIGN_OR_RETURN(const std::string device, FindPci(pci_path));
  return FindBlockBelow(device, fmt::format(":0:{}:{}/block/", target, lun), "sd");
}

absl::Status Sysfs::ScanScsi(std::string_view pci_path, uint32_t target, uint32_t lun) const {
  ASSIGN_OR_RETURN(const std::string device, FindPci(pci_path));
  for (const std::string& host : ListDirectory(root_ + "/class/scsi_host")) {
    const std::string real = RealPath(root_ + "/class/scsi_host/" + host);
    if (real.compare(0, device.size() + 1, device + "/") != 0) continue;
    return WriteKernelFile(real + "/scan", fmt::format("0 {} {}", target, lun));
  }
  return NotFound("no SCSI host at PCI {}", pci_path);
}

absl::Status Sysfs::DeleteScsiDisk(std::string_view block_name) const {
  const absl::Status deleted =
      WriteKernelFile(fmt::format("{}/block/{}/device/delete", root_, block_name), "1");
  return deleted.code() == absl::StatusCode::kNotFound ? absl::OkStatus() : deleted;
}

absl::StatusOr<uint64_t> Sysfs::BlockSizeBytes(std::string_view block_name) const {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadKernelFile(fmt::format("{}/block/{}/size", root_, block_name)));
  ASSIGN_OR_RETURN(const uint64_t sectors, ParseCount(text));
  return sectors * 512;
}

absl::StatusOr<std::string> Sysfs::FindSerialPort(std::string_view port_name) const {
  for (const std::string& name : ListDirectory(root_ + "/class/virtio-ports")) {
    const auto text = ReadKernelFile(root_ + "/class/virtio-ports/" + name + "/name");
    if (text.ok() && *text == port_name) return name;
  }
  return NotFound("no virtio-serial port is named {}", port_name);
}

absl::StatusOr<std::string> Sysfs::FindNetDevice(std::string_view mac) const {
  for (const std::string& name : ListDirectory(root_ + "/class/net")) {
    const auto text = ReadKernelFile(root_ + "/class/net/" + name + "/address");
    if (text.ok() && *text == mac) return name;
  }
  return NotFound("no network device has the MAC {}", mac);
}

std::vector<std::string> Sysfs::VirtioModaliases() const {
  std::vector<std::string> aliases;
  for (const std::string& name : ListDirectory(root_ + "/bus/virtio/devices")) {
    auto text = ReadKernelFile(root_ + "/bus/virtio/devices/" + name + "/modalias");
    if (text.ok()) aliases.push_back(*std::move(text));
  }
  return aliases;
}

absl::Status SetReadOnly(const std::string& device_node, bool read_only) {
  UniqueFd fd(open(device_node.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd && (errno == ENXIO || errno == ENODEV)) return NotFound("{} is not ready", device_node);
  if (!fd) return ErrnoStatus(errno, "open " + device_node);
  const int on = read_only ? 1 : 0;
  if (ioctl(fd.get(), BLKROSET, &on) != 0) return ErrnoStatus(errno, "set read-only " + device_node);
  return absl::OkStatus();
}

class DeviceMonitor::Impl {
 public:
  ~Impl() {
    if (!thread_.joinable()) return;
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(stop_.get(), &one, sizeof one);
    thread_.join();
  }

  absl::Status Start(std::function<void(const std::string&)> on_virtio) {
    on_virtio_ = std::move(on_virtio);
    socket_.reset(socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT));
    if (!socket_) return ErrnoStatus(errno, "open a uevent socket");
    sockaddr_nl address{};
    address.nl_family = AF_NETLINK;
    address.nl_groups = 1;
    if (bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      return ErrnoStatus(errno, "bind the uevent socket");
    }
    stop_.reset(eventfd(0, EFD_CLOEXEC));
    if (!stop_) return ErrnoStatus(errno, "eventfd");
    ASSIGN_OR_RETURN(thread_, ttrpc::NewThread([this] { Run(); }));
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> WaitFor(const std::function<absl::StatusOr<std::string>()>& find,
                                      std::chrono::milliseconds timeout) {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    for (;;) {
      uint64_t seen;
      {
        MutexLock lock(mutex_);
        seen = events_;
      }
      auto found = find();
      const auto now = std::chrono::steady_clock::now();
      if (found.ok() || found.status().code() != absl::StatusCode::kNotFound || now >= deadline) return found;
      // Not every state change sends a uevent (the name of a serial port, a size): look again at times.
      const auto again = std::min(deadline, now + std::chrono::milliseconds(250));
      MutexLock lock(mutex_);
      while (events_ == seen && changed_.WaitUntil(mutex_, again)) {
      }
    }
  }

 private:
  void Run() {
    pollfd fds[2] = {{socket_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    for (;;) {
      if (poll(fds, 2, -1) < 0 && errno != EINTR) return;
      if (fds[1].revents != 0) return;
      char buffer[8192];
      sockaddr_nl sender{};
      socklen_t size = sizeof sender;
      const ssize_t n =
          recvfrom(socket_.get(), buffer, sizeof buffer, 0, reinterpret_cast<sockaddr*>(&sender), &size);
      if (n <= 0 && errno != ENOBUFS) continue;
      if (n > 0 && sender.nl_pid != 0) continue;  // not from the kernel
      if (n > 0) {
        auto variables = ParseUevent(std::string_view(buffer, static_cast<size_t>(n)));
        if (variables["ACTION"] == "add" && variables["SUBSYSTEM"] == "virtio" && on_virtio_) {
          on_virtio_(variables["MODALIAS"]);
        }
      }
      {
        MutexLock lock(mutex_);
        ++events_;
      }
      changed_.NotifyAll();
    }
  }

  std::function<void(const std::string&)> on_virtio_;
  UniqueFd socket_, stop_;
  Mutex mutex_;
  CondVar changed_;
  uint64_t events_ GUARDED_BY(mutex_) = 0;
  std::thread thread_;
};

DeviceMonitor::DeviceMonitor(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeviceMonitor::~DeviceMonitor() = default;

absl::StatusOr<std::unique_ptr<DeviceMonitor>> DeviceMonitor::Start(
    std::function<void(const std::string&)> on_virtio) {
  auto impl = std::make_unique<Impl>();
  RETURN_IF_ERROR(impl->Start(std::move(on_virtio)));
  return std::unique_ptr<DeviceMonitor>(new DeviceMonitor(std::move(impl)));
}

absl::StatusOr<std::string> DeviceMonitor::WaitFor(const std::function<absl::StatusOr<std::string>()>& find,
                                                   std::chrono::milliseconds timeout) {
  return impl_->WaitFor(find, timeout);
}

absl::StatusOr<std::string> AwaitDevice(DeviceMonitor& monitor,
                                        const std::function<absl::StatusOr<std::string>()>& find) {
  auto found = monitor.WaitFor(find, kDeviceTimeout);
  if (!absl::IsNotFound(found.status())) return found;
  return MakeStatus(absl::StatusCode::kDeadlineExceeded, "{} (waited {} s)", Message(found.status()),
                    kDeviceTimeout.count());
}

}  // namespace lamina::guest
