#include "cri/pod_disks.h"

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/sha256.h"
#include "base/status.h"
#include "base/units.h"
#include "cri/volume_kind.h"
#include "guest/protocol/contract.h"

namespace lamina::cri {
namespace {

using persist::PodDisk;
using persist::SandboxState;

constexpr std::chrono::seconds kAgentTimeout{60};  // what was written is written out first
constexpr size_t kWatchStackBytes = 64 * 1024;

// What a guest's file system needs beside what is written to it, and less than that is no news.
constexpr uint64_t kMargin = 16 * kMiB;
constexpr char kDevicePrefix[] = "d";

std::string DeviceVolume(DeviceNumber number) {
  return fmt::format("{}{}-{}", kDevicePrefix, number.major, number.minor);
}

}  // namespace

agent::v1::ContainerDevice GuestDevice(const SpecDevice& device, const std::string& volume) {
  agent::v1::ContainerDevice told;
  told.set_path(device.path);
  told.set_volume(volume);
  told.set_access(device.access);
  told.set_mode(device.mode);
  told.set_uid(device.uid);
  told.set_gid(device.gid);
  return told;
}

std::string RootVolume(const std::string& container_id) { return "r" + Sha256(container_id).substr(0, 20); }

PodDisks::~PodDisks() {
  MutexLock lock(mutex_);
  stopped_ = true;
  stopping_.NotifyAll();
}

void PodDisks::Attach(vmm::Vm& vm, ttrpc::Caller& agent) {
  vm_ = &vm;
  agent_ = &agent;
}

void PodDisks::Restore(const SandboxState& state) {
  MutexLock lock(mutex_);
  disks_.clear();
  for (const persist::PodVolume& volume : state.volumes) {
    if (volume.kind == VolumeKindName(VolumeKind::kDisk)) disks_[volume.name] = Disk();
  }
  for (const PodDisk& known : state.disks) {
    Disk& disk = disks_[known.name];
    disk.path = known.image;
    if (!known.image.empty()) continue;
    disk.users = 0;
    for (const auto& [id, container] : state.containers)
      disk.users +=
          static_cast<size_t>(std::count(container.devices.begin(), container.devices.end(), known.name));
  }
}

absl::Status PodDisks::TellGuest(const agent::v1::MountVolumeRequest& volume) {
  return ttrpc::Call(*agent_, guest::kMountVolume, volume, kAgentTimeout).status();
}

absl::Status PodDisks::NoteInState(const std::string& name, const std::string& image) {
  return book_.Change([&](SandboxState& state) { state.disks.push_back({name, image}); });
}

absl::Status PodDisks::Plug(vmm::DiskFile file, uint64_t bytes, Disk& disk, agent::v1::ScsiDisk& place) {
  disk.writable = file.writable;
  disk.bytes = bytes;
  ASSIGN_OR_RETURN(disk.reservation, vm_->scsi().Reserve(std::move(file)));
  ASSIGN_OR_RETURN(const vmm::DiskPlace where, vm_->scsi().Map(*disk.reservation));
  place.set_pci_path(where.pci_path);
  place.set_target(where.target);
  place.set_lun(where.lun);
  place.set_size(bytes);
  return absl::OkStatus();
}

absl::Status PodDisks::TakeAway(const std::string& name, const Disk& disk, bool guest_has_it) {
  absl::Status first;
  if (guest_has_it && vm_->Alive().ok()) {
    agent::v1::UnmountVolumeRequest request;
    request.set_name(name);
    first = ttrpc::Call(*agent_, guest::kUnmountVolume, request, kAgentTimeout).status();
  }
  if (first.ok() && disk.reservation && vm_->Alive().ok()) first = vm_->scsi().Unmap(*disk.reservation);
  if (!disk.path.empty() && !disk.kept) first.Update(RemoveDiskImage(disk.path));
  first.Update(book_.Record([&](SandboxState& state) {
    std::erase_if(state.disks, [&](const PodDisk& known) { return known.name == name; });
  }));
  return first;
}

absl::Status PodDisks::AddImage(const std::string& path, const DiskImageOptions& options,
                                agent::v1::MountVolumeRequest volume) {
  const std::string& name = volume.name();
  volume.mutable_disk();
  const auto known = [&] {
    MutexLock lock(mutex_);
    return disks_.count(name) != 0;
  };
  if (known()) return TellGuest(volume);
  Disk disk;
  disk.path = path;
  disk.kept = options.keep;
  bool told = false;
  const auto add = [&]() -> absl::Status {
    if (!options.keep) RETURN_IF_ERROR(NoteInState(name, path));
    ASSIGN_OR_RETURN(const uint64_t bytes, MakeDiskImage(path, options));
    vmm::DiskFile file{.path = path, .writable = true, .open = [path] { return OpenDiskImage(path); }};
    RETURN_IF_ERROR(Plug(std::move(file), bytes, disk, *volume.mutable_disk()->mutable_disk()));
    told = true;
    return TellGuest(volume);
  };
  if (const absl::Status added = add(); !added.ok()) {
    const absl::Status undone = TakeAway(name, disk, told);
    if (!undone.ok()) LogWarning("disk {}: not all is undone: {}", path, Message(undone));
    return added;
  }
  MutexLock lock(mutex_);
  disks_[name] = std::move(disk);
  if (const absl::Status watched = Watch(); !watched.ok())
    LogWarning("disk {}: that the node's disk becomes full will not be seen: {}", path, Message(watched));
  return absl::OkStatus();
}

absl::StatusOr<std::string> PodDisks::AddDevice(DeviceNumber number, bool writable) {
  const std::string name = DeviceVolume(number);
  MutexLock devices(devices_mutex_);
  {
    MutexLock lock(mutex_);
    if (const auto it = disks_.find(name); it != disks_.end()) {
      if (writable && !it->second.writable && it->second.reservation) {
        return MakeStatus(
            absl::StatusCode::kFailedPrecondition,
            "block device {}:{}: wanted writable, and others of the pod have it to be read only",
            number.major, number.minor);
      }
      ++it->second.users;
      return name;
    }
  }
  ASSIGN_OR_RETURN(const std::string path, BlockDevicePath(number));
  ASSIGN_OR_RETURN(const uint64_t bytes, BlockDeviceBytes(number));
  if (bytes == 0)
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "block device {} has no medium: 0 bytes", path);
  Disk disk;
  disk.device = number;
  bool told = false;
  const auto add = [&]() -> absl::Status {
    vmm::DiskFile file{
        .path = path, .writable = writable, .open = [=] { return OpenBlockDevice(number, writable); }};
    agent::v1::MountVolumeRequest volume;
    volume.set_name(name);
    volume.mutable_block()->set_read_only(!writable);
    RETURN_IF_ERROR(NoteInState(name, ""));
    RETURN_IF_ERROR(Plug(std::move(file), bytes, disk, *volume.mutable_block()->mutable_disk()));
    told = true;
    return TellGuest(volume);
  };
  if (const absl::Status added = add(); !added.ok()) {
    const absl::Status undone = TakeAway(name, disk, told);
    if (!undone.ok()) LogWarning("block device {}: not all is undone: {}", path, Message(undone));
    return Annotate(added, "block device " + path);
  }
  MutexLock lock(mutex_);
  disks_[name] = std::move(disk);
  if (const absl::Status watched = Watch(); !watched.ok())
    LogWarning("block device {}: its growth will not be seen: {}", path, Message(watched));
  return name;
}

absl::Status PodDisks::RemoveLast(const std::string& name) {
  Disk disk;
  {
    MutexLock lock(mutex_);
    const auto it = disks_.find(name);
    if (it == disks_.end() || --it->second.users > 0) return absl::OkStatus();
    disk = std::move(it->second);
    disks_.erase(it);
  }
  return TakeAway(name, disk, true);
}

absl::Status PodDisks::Remove(const std::string& name) {
  if (!name.starts_with(kDevicePrefix)) return RemoveLast(name);
  MutexLock devices(devices_mutex_);
  return RemoveLast(name);
}

absl::Status PodDisks::Watch() {
  if (watching_) return absl::OkStatus();
  RETURN_IF_ERROR(threads_.Start(kWatchStackBytes, [this] { FollowSizes(); }));
  watching_ = true;
  return absl::OkStatus();
}

std::map<std::string, PodDisks::Disk> PodDisks::Grown() {
  std::map<std::string, Disk> grown;
  MutexLock lock(mutex_);
  for (auto& [name, disk] : disks_) {
    if (!disk.device || !disk.writable || !disk.reservation) continue;
    const uint64_t bytes = BlockDeviceBytes(*disk.device).value_or(0);
    if (bytes <= disk.bytes) continue;
    disk.bytes = bytes;
    grown[name] = disk;
  }
  return grown;
}

std::map<std::string, uint64_t> PodDisks::Rooms() {
  std::map<std::string, uint64_t> rooms;
  MutexLock lock(mutex_);
  for (auto& [name, disk] : disks_) {
    struct stat image {};
    struct statvfs node {};
    if (disk.path.empty() || !disk.reservation || stat(disk.path.c_str(), &image) != 0 ||
        statvfs(disk.path.c_str(), &node) != 0) {
      continue;
    }
    const uint64_t available = uint64_t{node.f_bavail} * node.f_frsize;
    const uint64_t room = available > kMargin ? available - kMargin : 0;
    // What is no hole of the image is taken from the node's disk already.
    const uint64_t taken = std::min(disk.bytes, static_cast<uint64_t>(image.st_blocks) * 512);
    const uint64_t free = disk.bytes - taken, held_back = free > room ? free - room : 0;
    const uint64_t change =
        held_back > disk.held_back ? held_back - disk.held_back : disk.held_back - held_back;
    if (change < kMargin && (held_back > 0) == (disk.held_back > 0)) continue;
    disk.held_back = held_back;
    rooms[name] = held_back == 0 ? 0 : std::max<uint64_t>(room, 1);
  }
  return rooms;
}

void PodDisks::TellRoom(const std::string& name, uint64_t room) {
  agent::v1::MountVolumeRequest volume;
  volume.set_name(name);
  volume.mutable_disk()->set_room_bytes(room);
  const absl::Status told = TellGuest(volume);
  if (told.ok()) return;
  // It may have gone in between.
  LogWarning("disk {}: the guest was not told what room the node's disk has: {}", name, Message(told));
  MutexLock lock(mutex_);
  if (const auto it = disks_.find(name); it != disks_.end()) it->second.held_back = 0;
}

// The kernel tells of growth by events too, for which every shim of the node would wake; of a full disk it
// does not tell.
void PodDisks::FollowSizes() {
  for (;;) {
    {
      MutexLock lock(mutex_);
      const auto again = std::chrono::steady_clock::now() + look_every_;
      while (!stopped_ && stopping_.WaitUntil(mutex_, again)) {
      }
      if (stopped_) return;
    }
    if (!vm_->Alive().ok()) continue;
    for (const auto& [name, disk] : Grown()) {
      const absl::Status grown = vm_->scsi().Grow(*disk.reservation, disk.bytes);
      LogInfo("block device {}:{} has grown to {} bytes{}", disk.device->major, disk.device->minor,
              disk.bytes, grown.ok() ? "" : "; the VM does not see it: " + Message(grown));
    }
    for (const auto& [name, room] : Rooms()) TellRoom(name, room);
  }
}

}  // namespace lamina::cri
