#include "guest/agent/layers.h"

#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>

#include "base/log.h"
#include "base/status.h"
#include "guest/agent/device_mapper.h"
#include "guest/agent/disks.h"
#include "guest/agent/files.h"
#include "proto/agent.pb.h"

namespace lamina::guest {
namespace {

using std::chrono::steady_clock;

double SecondsSince(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

absl::Status MountErofs(const std::string& device, const std::string& target, const char* options) {
  if (mkdir(target.c_str(), 0755) != 0 && errno != EEXIST) return ErrnoStatus(errno, "mkdir " + target);
  if (mount(device.c_str(), target.c_str(), "erofs", MS_RDONLY | MS_NODEV, options) != 0) {
    return ErrnoStatus(errno, fmt::format("mount the EROFS of {} on {}", device, target));
  }
  return absl::OkStatus();
}

std::string DescribePlace(const agent::v1::Layer& layer) {
  if (layer.has_pmem()) {
    return fmt::format("pmem {} {} {}", layer.pmem().pci_path(), layer.pmem().offset(), layer.pmem().size());
  }
  const auto disk = [](const agent::v1::ScsiDisk& d) {
    return fmt::format("scsi {} {} {} {}", d.pci_path(), d.target(), d.lun(), d.size());
  };
  if (!layer.has_verity()) return disk(layer.scsi());
  return fmt::format("{} with the tree on {} of root {}", disk(layer.scsi()), disk(layer.verity().tree()),
                     layer.verity().root_hash());
}

}  // namespace

absl::Status LayerTable::MountPmem(const agent::v1::Layer& layer, Entry& entry,
                                   agent::v1::LayerResult& result) {
  const auto& region = layer.pmem();
  auto start = steady_clock::now();
  RETURN_IF_ERROR(modules_.Load("virtio-27"));
  // The host maps the arena read-only, yet the guest's driver believes it writable: its writes would be lost
  // in silence.
  const auto find = [&]() -> absl::StatusOr<std::string> {
    ASSIGN_OR_RETURN(std::string name, sysfs_.FindPmem(region.pci_path()));
    RETURN_IF_ERROR(SetReadOnly("/dev/" + name));
    return name;
  };
  const auto found = AwaitDevice(monitor_, find);
  RETURN_IF_ERROR(found.status());
  ASSIGN_OR_RETURN(const Mapping mapping, PlanLinear(*found, region.offset(), region.size()));
  ASSIGN_OR_RETURN(const uint64_t size, sysfs_.BlockSizeBytes(*found));
  if (region.offset() + region.size() > size) {
    return InvalidArgument("region of {} bytes at {} does not fit {} of {} bytes", region.size(),
                           region.offset(), *found, size);
  }
  result.set_wait_device_seconds(SecondsSince(start));

  start = steady_clock::now();
  RETURN_IF_ERROR(modules_.Load("dm"));
  ASSIGN_OR_RETURN(const std::string node, DeviceMapper::Create(mapping));
  entry.dm_name = mapping.name;
  result.set_map_seconds(SecondsSince(start));

  start = steady_clock::now();
  const std::string target = MountPoint(layer.id());
  const absl::Status with_dax = MountErofs(node, target, "dax=always");
  entry.dax = with_dax.ok();
  if (!with_dax.ok()) {
    LogWarning("layer {}: without DAX: {}", layer.id(), Message(with_dax));
    RETURN_IF_ERROR(MountErofs(node, target, ""));
  }
  result.set_mount_seconds(SecondsSince(start));
  return absl::OkStatus();
}

absl::StatusOr<std::string> LayerTable::FindDisk(const agent::v1::ScsiDisk& disk, Entry& entry) {
  ASSIGN_OR_RETURN(std::string name, AwaitDisk(monitor_, sysfs_, disk, /*read_only=*/true));
  entry.disks.push_back(name);
  RETURN_IF_ERROR(CheckDiskSize(sysfs_, name, disk));
  return name;
}

absl::Status LayerTable::MountScsi(const agent::v1::Layer& layer, Entry& entry,
                                   agent::v1::LayerResult& result) {
  auto start = steady_clock::now();
  RETURN_IF_ERROR(modules_.Load("virtio-8"));
  ASSIGN_OR_RETURN(const std::string disk, FindDisk(layer.scsi(), entry));
  std::string node = "/dev/" + disk;
  if (layer.has_verity()) {
    ASSIGN_OR_RETURN(const std::string tree, FindDisk(layer.verity().tree(), entry));
    result.set_wait_device_seconds(SecondsSince(start));

    start = steady_clock::now();
    RETURN_IF_ERROR(modules_.Load("dm"));
    RETURN_IF_ERROR(modules_.Load("verity"));
    ASSIGN_OR_RETURN(const Mapping mapping,
                     PlanVerity(disk, tree, layer.scsi().size(), layer.verity().root_hash()));
    ASSIGN_OR_RETURN(node, DeviceMapper::Create(mapping));
    entry.dm_name = mapping.name;
    result.set_map_seconds(SecondsSince(start));
  } else {
    result.set_wait_device_seconds(SecondsSince(start));
  }

  start = steady_clock::now();
  RETURN_IF_ERROR(MountErofs(node, MountPoint(layer.id()), ""));
  result.set_mount_seconds(SecondsSince(start));
  return absl::OkStatus();
}

LayerTable::Entry* LayerTable::WaitIdle(const std::string& id) {
  for (;;) {
    const auto found = entries_.find(id);
    if (found == entries_.end()) return nullptr;
    if (!found->second.busy) return &found->second;
    idle_.Wait(mutex_);
  }
}

// What a mount that failed, or an unmount, could not undo is in the way of its layer and of its place.
absl::Status LayerTable::RemoveLeftovers(const std::string& id, const std::string& place) {
  std::vector<std::string> left;
  {
    MutexLock lock(mutex_);
    for (const auto& [other, entry] : entries_) {
      if (!entry.mounted && !entry.busy && (other == id || entry.place == place)) left.push_back(other);
    }
  }
  for (const std::string& other : left) RETURN_IF_ERROR(Remove(other, /*only_leftovers=*/true));
  return absl::OkStatus();
}

absl::StatusOr<agent::v1::LayerResult> LayerTable::Mount(const agent::v1::Layer& layer) {
  RETURN_IF_ERROR(CheckLayerId(layer.id()));
  if (!layer.has_pmem() && !layer.has_scsi()) return InvalidArgument("layer {}: no place given", layer.id());
  RETURN_IF_ERROR(
      ParsePciPath(layer.has_pmem() ? layer.pmem().pci_path() : layer.scsi().pci_path()).status());
  if (layer.has_verity()) {
    if (!layer.has_scsi()) return InvalidArgument("layer {}: a hash tree without a SCSI disk", layer.id());
    RETURN_IF_ERROR(ParsePciPath(layer.verity().tree().pci_path()).status());
  }
  const std::string place = DescribePlace(layer);
  agent::v1::LayerResult result;
  result.set_id(layer.id());
  Entry entry;
  RETURN_IF_ERROR(RemoveLeftovers(layer.id(), place));
  {
    MutexLock lock(mutex_);
    if (Entry* there = WaitIdle(layer.id()); there != nullptr) {
      if (there->mounted && there->place == place) {
        result.set_dax(there->dax);
        return result;
      }
      return MakeStatus(absl::StatusCode::kAlreadyExists, "layer {} is mounted from {}, not from {}",
                        layer.id(), there->place, place);
    }
    for (const auto& [id, other] : entries_) {
      if (other.place == place) {
        return MakeStatus(absl::StatusCode::kAlreadyExists, "{} holds layer {}, not {}", place, id,
                          layer.id());
      }
    }
    while (links_.count(entry.link) > 0) ++entry.link;
    links_.insert(entry.link);
    entry.place = place;
    Entry placeholder = entry;
    placeholder.busy = true;
    entries_.emplace(layer.id(), placeholder);
  }

  absl::Status status = modules_.Load("erofs");
  if (status.ok())
    status = layer.has_pmem() ? MountPmem(layer, entry, result) : MountScsi(layer, entry, result);
  if (status.ok()) {
    const std::string link = fmt::format("{}/l/{}", root_, entry.link);
    unlink(link.c_str());
    if (symlink(("../layers/" + layer.id()).c_str(), link.c_str()) != 0)
      status = ErrnoStatus(errno, "symlink " + link);
  }
  entry.mounted = status.ok();
  bool clean = true;
  if (!status.ok()) {
    const absl::Status undone = Undo(layer.id(), entry);
    clean = undone.ok();
    if (!clean) LogError("layer {}: undoing its mount: {}", layer.id(), Message(undone));
  }
  {
    MutexLock lock(mutex_);
    if (status.ok() || !clean) {
      entries_[layer.id()] = entry;  // what could not be undone stays known, for Unmount to go on with
    } else {
      entries_.erase(layer.id());
      links_.erase(entry.link);
    }
  }
  idle_.NotifyAll();
  if (!status.ok()) return Annotate(status, "layer " + layer.id());
  result.set_dax(entry.dax);
  return result;
}

absl::Status LayerTable::Undo(const std::string& id, Entry& entry) {
  const std::string target = MountPoint(id);
  if (umount2(target.c_str(), UMOUNT_NOFOLLOW) != 0 && errno != EINVAL && errno != ENOENT) {
    return ErrnoStatus(errno, "unmount " + target);
  }
  entry.mounted = false;
  rmdir(target.c_str());
  unlink(fmt::format("{}/l/{}", root_, entry.link).c_str());
  if (!entry.dm_name.empty()) {
    RETURN_IF_ERROR(DeviceMapper::Remove(entry.dm_name));
    entry.dm_name.clear();
  }
  while (!entry.disks.empty()) {
    RETURN_IF_ERROR(sysfs_.DeleteScsiDisk(entry.disks.back()));
    entry.disks.pop_back();
  }
  return absl::OkStatus();
}

absl::Status LayerTable::Unmount(const std::string& id) {
  RETURN_IF_ERROR(CheckLayerId(id));
  return Remove(id, /*only_leftovers=*/false);
}

absl::Status LayerTable::Remove(const std::string& id, bool only_leftovers) {
  Entry entry;
  {
    MutexLock lock(mutex_);
    Entry* there = WaitIdle(id);
    // A leftover may have become a layer again since it was seen.
    if (there == nullptr || (only_leftovers && there->mounted)) return absl::OkStatus();
    if (there->users > 0) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition, "layer {} is used by {} container(s)", id,
                        there->users);
    }
    there->busy = true;
    entry = *there;
  }
  const absl::Status status = Undo(id, entry);
  {
    MutexLock lock(mutex_);
    if (status.ok()) {
      entries_.erase(id);
      links_.erase(entry.link);
    } else {
      entry.busy = false;
      entries_[id] = entry;
    }
  }
  idle_.NotifyAll();
  return Annotate(status, "layer " + id);
}

absl::StatusOr<std::vector<std::string>> LayerTable::Acquire(const std::vector<std::string>& ids) {
  std::vector<std::string> links;
  std::set<std::string> seen;
  MutexLock lock(mutex_);
  for (const std::string& id : ids) {
    RETURN_IF_ERROR(CheckLayerId(id));
    if (!seen.insert(id).second) return InvalidArgument("layer {} is named twice", id);
    const Entry* there = WaitIdle(id);
    if (there == nullptr || !there->mounted) {
      return MakeStatus(absl::StatusCode::kNotFound, "layer {} is not mounted", id);
    }
  }
  // WaitIdle may have let go of the mutex: look again, then hold all of them.
  for (const std::string& id : ids) {
    const auto found = entries_.find(id);
    if (found == entries_.end() || !found->second.mounted || found->second.busy) {
      return MakeStatus(absl::StatusCode::kNotFound, "layer {} is being unmounted", id);
    }
  }
  for (const std::string& id : ids) {
    Entry& entry = entries_[id];
    ++entry.users;
    links.push_back(fmt::format("{}", entry.link));
  }
  return links;
}

void LayerTable::Release(const std::vector<std::string>& ids) {
  MutexLock lock(mutex_);
  for (const std::string& id : ids) {
    const auto found = entries_.find(id);
    if (found != entries_.end() && found->second.users > 0) --found->second.users;
  }
}

void LayerTable::UnmountAll() {
  std::vector<std::string> ids;
  {
    MutexLock lock(mutex_);
    for (auto& [id, entry] : entries_) {
      entry.users = 0;
      ids.push_back(id);
    }
  }
  for (const std::string& id : ids) {
    const absl::Status status = Unmount(id);
    if (!status.ok()) LogWarning("{}", Message(status));
  }
}

}  // namespace lamina::guest
