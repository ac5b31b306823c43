#include "guest/agent/disk_volumes.h"

#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "base/status.h"
#include "guest/agent/disks.h"
#include "guest/agent/files.h"
#include "proto/agent.pb.h"

namespace lamina::guest {
namespace {

// Freed blocks become holes of the host's file at once. The inode tables are holes there, which read as the
// zeros that the kernel would otherwise write.
constexpr char kExt4Options[] = "discard,noinit_itable";

}  // namespace

absl::StatusOr<std::string> DiskVolumes::Attach(const agent::v1::ScsiDisk& disk, bool read_only) const {
  RETURN_IF_ERROR(modules_.Load("virtio-8"));
  return AwaitDisk(monitor_, sysfs_, disk, read_only);
}

absl::Status DiskVolumes::Mount(const std::string& name, const std::string& target) {
  const std::string device = "/dev/" + name;
  if (mount(device.c_str(), target.c_str(), "ext4", 0, kExt4Options) != 0)
    return ErrnoStatus(errno, fmt::format("mount the ext4 of {} on {}", device, target));
  // e2fsck would make it anew where it needs it; a volume is empty to begin with.
  const std::string made = target + "/lost+found";
  if (rmdir(made.c_str()) != 0 && errno != ENOENT && errno != ENOTEMPTY)
    LogWarning("{}", Message(ErrnoStatus(errno, "rmdir " + made)));
  return absl::OkStatus();
}

absl::Status DiskVolumes::SetRoom(const std::string& name, const std::string& target, uint64_t room_bytes) {
  struct statvfs info {};
  if (statvfs(target.c_str(), &info) != 0) return ErrnoStatus(errno, "look at volume " + target);
  const uint64_t blocks = info.f_blocks, free = info.f_bfree, room = room_bytes / info.f_bsize;
  // What the kernel holds back by itself, for what it must write.
  const uint64_t least = std::min<uint64_t>(blocks / 50, 4096);
  const uint64_t held = room_bytes == 0 || free <= room ? 0 : free - room;
  return WriteKernelFile(fmt::format("/sys/fs/ext4/{}/reserved_clusters", name),
                         std::to_string(std::clamp(held, least, blocks - 1)));
}

}  // namespace lamina::guest
