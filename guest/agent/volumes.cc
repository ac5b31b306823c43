#include "guest/agent/volumes.h"

#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "base/log.h"
#include "base/safe_id.h"
#include "base/status.h"
#include "guest/agent/in_volume.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"

namespace lamina::guest {
namespace {

using agent::v1::Folder;
using agent::v1::MountVolumeRequest;

absl::Status Own(int folder, const Folder& wanted, const std::string& path) {
  const std::string proc = fmt::format("/proc/self/fd/{}", folder);
  // The mode after the owner, which takes setgid away.
  if (chown(proc.c_str(), wanted.uid(), wanted.gid()) != 0 || chmod(proc.c_str(), wanted.mode() & 07777) != 0)
    return ErrnoStatus(errno, "set owner and mode of " + path);
  return absl::OkStatus();
}

// What is there stays as it is, a file too.
absl::Status MakeFolder(const std::string& root, const Folder& folder) {
  RETURN_IF_ERROR(CheckRelative(folder.path(), "folder of a volume"));
  const size_t slash = folder.path().rfind('/');
  const std::string parent = slash == std::string::npos ? "" : folder.path().substr(0, slash);
  const std::string name = folder.path().substr(slash == std::string::npos ? 0 : slash + 1);
  ASSIGN_OR_RETURN(const UniqueFd above, OpenInVolume(root, parent, OtherMounts::kRefused));
  if (mkdirat(above.get(), name.c_str(), 0700) != 0) {
    if (errno == EEXIST) return absl::OkStatus();
    return ErrnoStatus(errno, fmt::format("mkdir {}/{}", root, folder.path()));
  }
  ASSIGN_OR_RETURN(const UniqueFd made, OpenInVolume(root, folder.path(), OtherMounts::kRefused));
  return Own(made.get(), folder, folder.path());
}

// As the kubelet mounts one: programs in it run.
absl::Status MountMemory(const std::string& point, uint64_t bytes) {
  const std::string options = bytes == 0 ? "mode=0755" : fmt::format("size={},mode=0755", bytes);
  if (mount("tmpfs", point.c_str(), "tmpfs", 0, options.c_str()) != 0)
    return ErrnoStatus(errno, fmt::format("mount a tmpfs of {} bytes on {}", bytes, point));
  return absl::OkStatus();
}

std::string IdentityOf(const MountVolumeRequest& request) {
  MountVolumeRequest identity = request;
  identity.clear_folders();
  identity.clear_root();
  if (identity.has_memory()) identity.mutable_memory()->clear_size_bytes();
  if (identity.has_disk()) identity.mutable_disk()->Clear();
  if (identity.has_block()) identity.mutable_block()->clear_disk();
  return identity.SerializeAsString();
}

absl::Status UnmountAt(const std::string& point) {
  if (umount2(point.c_str(), UMOUNT_NOFOLLOW) != 0 && errno != EINVAL && errno != ENOENT)
    return ErrnoStatus(errno, "unmount " + point);
  if (rmdir(point.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, "remove " + point);
  return absl::OkStatus();
}

}  // namespace

absl::Status VolumeTable::MountNew(const MountVolumeRequest& request, Volume& volume) {
  if ((request.has_disk() || request.has_block()) && disks_ == nullptr)
    return absl::FailedPreconditionError("this agent has no disks");
  if (request.has_block()) {
    ASSIGN_OR_RETURN(volume.disk, disks_->Attach(request.block().disk(), request.block().read_only()));
    return absl::OkStatus();
  }
  const std::string point = MountPoint(request.name());
  for (const std::string& made : {directory_, point}) {
    if (mkdir(made.c_str(), 0711) != 0 && errno != EEXIST) return ErrnoStatus(errno, "mkdir " + made);
  }
  volume.mounted = true;  // from here on there is something to undo
  switch (request.kind_case()) {
    case MountVolumeRequest::kMemory:
      RETURN_IF_ERROR(MountMemory(point, request.memory().size_bytes()));
      break;
    case MountVolumeRequest::kDisk: {
      ASSIGN_OR_RETURN(volume.disk, disks_->Attach(request.disk().disk(), /*read_only=*/false));
      RETURN_IF_ERROR(DiskVolumes::Mount(volume.disk, point));
      break;
    }
    default:
      return InvalidArgument("volume {}: it is of no kind that this agent knows", request.name());
  }
  ASSIGN_OR_RETURN(const UniqueFd root, OpenInVolume(point, "", OtherMounts::kRefused));
  return Own(root.get(), request.root(), point);
}

absl::Status VolumeTable::UnmountOne(const std::string& name, Volume& volume) {
  if (volume.mounted) RETURN_IF_ERROR(UnmountAt(MountPoint(name)));
  volume.mounted = false;
  if (!volume.disk.empty()) RETURN_IF_ERROR(disks_->Detach(volume.disk));
  volume.disk.clear();
  return absl::OkStatus();
}

absl::StatusOr<std::string> VolumeTable::DeviceOf(const std::string& name) {
  MutexLock lock(mutex_);
  const auto there = volumes_.find(name);
  if (there == volumes_.end() || there->second.mounted || there->second.disk.empty())
    return MakeStatus(absl::StatusCode::kNotFound, "there is no block volume {:.160}", name);
  return "/dev/" + there->second.disk;
}

absl::Status VolumeTable::Mount(const MountVolumeRequest& request) {
  RETURN_IF_ERROR(CheckSafeId(request.name(), "volume name"));
  if (request.folders_size() > kMaxVolumeFolders)
    return InvalidArgument("{} folders of a volume: at most {}", request.folders_size(), kMaxVolumeFolders);
  const std::string identity = IdentityOf(request);
  MutexLock lock(mutex_);
  auto there = volumes_.find(request.name());
  if (there != volumes_.end() && !there->second.whole) {
    RETURN_IF_ERROR(Annotate(UnmountOne(request.name(), there->second), "volume " + request.name()));
    volumes_.erase(there);
    there = volumes_.end();
  }
  if (there != volumes_.end() && there->second.identity != identity)
    return MakeStatus(absl::StatusCode::kAlreadyExists, "volume {} is another one", request.name());
  const bool is_new = there == volumes_.end();
  if (is_new && volumes_.size() >= kMaxVolumes) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "{} volumes are all that one sandbox takes",
                      kMaxVolumes);
  }
  Volume fresh;
  fresh.identity = identity;
  absl::Status status;
  if (is_new) status = MountNew(request, fresh);
  if (status.ok() && request.disk().has_room_bytes()) {
    const std::string& disk = is_new ? fresh.disk : there->second.disk;
    status = DiskVolumes::SetRoom(disk, MountPoint(request.name()), request.disk().room_bytes());
  }
  for (int i = 0; status.ok() && i < request.folders_size(); ++i)
    status = MakeFolder(MountPoint(request.name()), request.folders(i));
  if (is_new) {
    fresh.whole = status.ok();
    const absl::Status undone = status.ok() ? absl::OkStatus() : UnmountOne(request.name(), fresh);
    if (!undone.ok()) LogError("volume {}: undoing it: {}", request.name(), Message(undone));
    // What could not be undone stays known, for Unmount to go on with.
    if (status.ok() || !undone.ok()) volumes_[request.name()] = fresh;
  }
  return Annotate(status, "volume " + request.name());
}

absl::Status VolumeTable::Unmount(const std::string& name) {
  RETURN_IF_ERROR(CheckSafeId(name, "volume name"));
  MutexLock lock(mutex_);
  const auto there = volumes_.find(name);
  if (there == volumes_.end()) return absl::OkStatus();
  const absl::Status status = UnmountOne(name, there->second);
  if (status.ok()) volumes_.erase(there);
  return Annotate(status, "volume " + name);
}

void VolumeTable::UnmountAll() {
  MutexLock lock(mutex_);
  for (auto& [name, volume] : volumes_) {
    const absl::Status status = UnmountOne(name, volume);
    if (status.ok()) continue;
    LogWarning("volume {}: {}", name, Message(status));
    umount2(MountPoint(name).c_str(), UMOUNT_NOFOLLOW | MNT_DETACH);
  }
  volumes_.clear();
}

}  // namespace lamina::guest
