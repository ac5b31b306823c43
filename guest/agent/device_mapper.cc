#include "guest/agent/device_mapper.h"

#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <sstream>
#include <thread>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "guest/agent/files.h"

namespace lamina::guest {
namespace {

constexpr int kCreateAttempts = 20;
constexpr int kRemoveAttempts = 40;
constexpr auto kRetryPause = std::chrono::milliseconds(25);

// One dm ioctl with room for one target and its parameters.
class Request {
 public:
  explicit Request(const std::string& name) : buffer_(4096) {
    dm_ioctl* io = header();
    io->version[0] = DM_VERSION_MAJOR;
    io->data_size = static_cast<uint32_t>(buffer_.size());
    io->data_start = sizeof(dm_ioctl);
    std::strncpy(io->name, name.c_str(), sizeof io->name - 1);
  }
  dm_ioctl* header() { return reinterpret_cast<dm_ioctl*>(buffer_.data()); }
  dm_target_spec* target() { return reinterpret_cast<dm_target_spec*>(buffer_.data() + sizeof(dm_ioctl)); }
  char* parameters() { return buffer_.data() + sizeof(dm_ioctl) + sizeof(dm_target_spec); }
  size_t parameters_size() const { return buffer_.size() - sizeof(dm_ioctl) - sizeof(dm_target_spec); }

 private:
  std::vector<char> buffer_;
};

// 0 or the errno.
int Call(int control, unsigned long command, Request& request) {
  int result;
  do {
    result = ioctl(control, command, request.header());
  } while (result != 0 && errno == EINTR);
  return result == 0 ? 0 : errno;
}

// The control node appears with the module; without udev its number is in /proc/misc.
absl::StatusOr<UniqueFd> OpenControl() {
  constexpr char kPath[] = "/dev/mapper/control";
  UniqueFd fd(open(kPath, O_RDWR | O_CLOEXEC));
  if (fd) return fd;
  ASSIGN_OR_RETURN(const std::string misc, ReadKernelFile("/proc/misc"));
  size_t at = 0;
  while (at < misc.size()) {
    const size_t newline = std::min(misc.find('\n', at), misc.size());
    const std::string_view line(misc.data() + at, newline - at);
    at = newline + 1;
    if (line.size() < 15 || line.substr(line.size() - 14) != " device-mapper") continue;
    const size_t digit = line.find_first_not_of(' ');
    const auto minor_number = ParseCount(line.substr(digit, line.size() - 14 - digit));
    if (!minor_number.ok()) continue;
    mkdir("/dev/mapper", 0755);
    if (mknod(kPath, S_IFCHR | 0600, makedev(10, *minor_number)) != 0 && errno != EEXIST) {
      return ErrnoStatus(errno, "mknod /dev/mapper/control");
    }
    fd.reset(open(kPath, O_RDWR | O_CLOEXEC));
    if (fd) return fd;
  }
  return ErrnoStatus(errno == 0 ? ENOENT : errno, "open /dev/mapper/control");
}

bool MayPass(int error) { return error == EBUSY || error == ENOENT || error == ENXIO || error == ENODEV; }

// The kernel tells devices by their numbers: "/dev/pmem0 4096" comes back as "259:0 4096".
absl::StatusOr<std::string> WithNumbers(const std::string& parameters) {
  std::istringstream words(parameters);
  std::string result;
  for (std::string word; words >> word;) {
    if (word.rfind("/dev/", 0) == 0) {
      struct stat node;
      if (stat(word.c_str(), &node) != 0) return ErrnoStatus(errno, "stat " + word);
      word = fmt::format("{}:{}", major(node.st_rdev), minor(node.st_rdev));
    }
    result += (result.empty() ? "" : " ") + word;
  }
  return result;
}

// Whether the live table is the wanted one.
absl::StatusOr<bool> HasTable(int control, const Mapping& want) {
  Request status(want.name);
  status.header()->flags = DM_STATUS_TABLE_FLAG;
  if (const int error = Call(control, DM_TABLE_STATUS, status); error != 0) {
    return ErrnoStatus(error, "read the table of " + want.name);
  }
  ASSIGN_OR_RETURN(const std::string parameters, WithNumbers(want.parameters));
  return status.header()->target_count == 1 && status.target()->length == want.sectors &&
         want.target == status.target()->target_type && parameters == status.parameters();
}

absl::StatusOr<std::string> NodeOf(uint64_t device) {
  const unsigned minor_number = minor(static_cast<dev_t>(device));
  std::string node = fmt::format("/dev/dm-{}", minor_number);
  struct stat info;
  if (stat(node.c_str(), &info) == 0) return node;
  if (mknod(node.c_str(), S_IFBLK | 0600, makedev(major(static_cast<dev_t>(device)), minor_number)) != 0 &&
      errno != EEXIST) {
    return ErrnoStatus(errno, "mknod " + node);
  }
  return node;
}

int LoadAndResume(int control, const Mapping& mapping, uint64_t* device) {
  Request load(mapping.name);
  load.header()->target_count = 1;
  load.header()->flags = DM_READONLY_FLAG;
  load.target()->sector_start = 0;
  load.target()->length = mapping.sectors;
  std::strncpy(load.target()->target_type, mapping.target.c_str(), sizeof load.target()->target_type - 1);
  std::strncpy(load.parameters(), mapping.parameters.c_str(), load.parameters_size() - 1);
  if (const int error = Call(control, DM_TABLE_LOAD, load); error != 0) return error;
  Request resume(mapping.name);
  resume.header()->flags = DM_READONLY_FLAG;
  const int error = Call(control, DM_DEV_SUSPEND, resume);
  *device = resume.header()->dev;
  return error;
}

}  // namespace

absl::StatusOr<Mapping> PlanLinear(std::string_view pmem, uint64_t offset, uint64_t size) {
  const bool named = pmem.size() > 4 && pmem.size() < 16 && pmem.substr(0, 4) == "pmem" &&
                     pmem.find_first_not_of("0123456789", 4) == std::string_view::npos;
  if (!named) return InvalidArgument("\"{}\" is not a pmem device", pmem.substr(0, 64));
  if (size == 0 || offset % 4096 != 0 || size % 4096 != 0 || offset + size < offset) {
    return InvalidArgument("region of {} bytes at {} of {}: want multiples of 4096", size, offset, pmem);
  }
  return Mapping{fmt::format("dm-linear-{}-{}-{}", pmem, offset, size), size / 512, "linear",
                 fmt::format("/dev/{} {}", pmem, offset / 512)};
}

absl::StatusOr<Mapping> PlanVerity(std::string_view data, std::string_view tree, uint64_t size,
                                   std::string_view root_hash) {
  for (const std::string_view disk : {data, tree}) {
    const bool named = disk.size() > 2 && disk.size() < 16 && disk.substr(0, 2) == "sd" &&
                       disk.find_first_not_of("abcdefghijklmnopqrstuvwxyz", 2) == std::string_view::npos;
    if (!named) return InvalidArgument("\"{}\" is not a SCSI disk", disk.substr(0, 64));
  }
  if (data == tree) return InvalidArgument("{} cannot be its own hash tree", data);
  if (size == 0 || size % 4096 != 0)
    return InvalidArgument("disk of {} bytes: want a multiple of 4096", size);
  if (root_hash.size() != 64 || root_hash.find_first_not_of("0123456789abcdef") != std::string_view::npos)
    return InvalidArgument("root hash \"{}\": want 64 hex digits", root_hash.substr(0, 128));
  return Mapping{
      fmt::format("dm-verity-{}", data), size / 512, "verity",
      fmt::format("1 /dev/{} /dev/{} 4096 4096 {} 0 sha256 {} -", data, tree, size / 4096, root_hash)};
}

absl::StatusOr<std::string> DeviceMapper::Create(const Mapping& mapping) {
  ASSIGN_OR_RETURN(UniqueFd control, OpenControl());
  int error = 0;
  for (int attempt = 0; attempt < kCreateAttempts; ++attempt) {
    if (attempt > 0) std::this_thread::sleep_for(kRetryPause);
    Request create(mapping.name);
    error = Call(control.get(), DM_DEV_CREATE, create);
    if (error == EBUSY) {  // the name is taken
      const auto same = HasTable(control.get(), mapping);
      if (same.ok() && *same) {
        Request status(mapping.name);
        if (Call(control.get(), DM_DEV_STATUS, status) == 0) return NodeOf(status.header()->dev);
      }
      if (same.ok()) {
        return MakeStatus(absl::StatusCode::kAlreadyExists, "device {} exists with another table",
                          mapping.name);
      }
      continue;
    }
    if (error == 0) {
      uint64_t device = 0;
      error = LoadAndResume(control.get(), mapping, &device);
      if (error == 0) return NodeOf(device);
      Request remove(mapping.name);
      Call(control.get(), DM_DEV_REMOVE, remove);
    }
    if (!MayPass(error)) break;
  }
  return ErrnoStatus(
      error, fmt::format("create {} with \"{} {}\"", mapping.name, mapping.target, mapping.parameters));
}

absl::Status DeviceMapper::Remove(const std::string& name) {
  ASSIGN_OR_RETURN(UniqueFd control, OpenControl());
  int error = 0;
  for (int attempt = 0; attempt < kRemoveAttempts; ++attempt) {
    if (attempt > 0) std::this_thread::sleep_for(kRetryPause);
    Request remove(name);
    error = Call(control.get(), DM_DEV_REMOVE, remove);
    if (error == 0 || error == ENXIO || error == ENOENT) return absl::OkStatus();
    if (error != EBUSY) break;
  }
  return ErrnoStatus(error, "remove " + name);
}

}  // namespace lamina::guest
