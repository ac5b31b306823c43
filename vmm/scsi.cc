#include "vmm/scsi.h"

#include "base/status.h"

namespace lamina::vmm {

absl::StatusOr<uint64_t> ScsiDisks::Reserve(DiskFile file) {
  MutexLock lock(mutex_);
  const std::string path = file.path;
  auto it = disks_.find(path);
  if (it != disks_.end() && file.writable && !it->second.file.writable) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "disk {}: wanted writable, and the VM has it to be read only", path);
  }
  if (it == disks_.end()) {
    std::set<std::pair<uint32_t, uint32_t>> taken = reserved_;
    for (const auto& [other, disk] : disks_) taken.insert({disk.controller, disk.lun});
    uint32_t slot = 0;
    while (slot < kScsiControllers * kScsiLuns && taken.count({slot / kScsiLuns, slot % kScsiLuns}) != 0)
      ++slot;
    if (slot == kScsiControllers * kScsiLuns) {
      return MakeStatus(absl::StatusCode::kResourceExhausted, "disk {}: all {} SCSI places are taken", path,
                        slot);
    }
    it = disks_.emplace(path, Disk()).first;
    it->second.file = std::move(file);
    it->second.controller = slot / kScsiLuns;
    it->second.lun = slot % kScsiLuns;
  }
  ++it->second.users;
  reservations_[next_id_] = path;
  return next_id_++;
}

// A controller is hot-added with its first disk and stays.
absl::StatusOr<std::string> ScsiDisks::ControllerPath(uint32_t index) {
  MutexLock lock(mutex_);
  Controller& controller = controllers_[index];
  while (controller.busy) changed_.Wait(mutex_);
  if (!controller.pci_path.empty()) return controller.pci_path;
  controller.busy = true;
  mutex_.Unlock();
  absl::StatusOr<std::string> added = host_.AddController(index);
  mutex_.Lock();
  controller.busy = false;
  if (added.ok()) controller.pci_path = *added;
  changed_.NotifyAll();
  return added;
}

absl::StatusOr<DiskPlace> ScsiDisks::Map(uint64_t id) {
  MutexLock lock(mutex_);
  const auto reservation = reservations_.find(id);
  if (reservation == reservations_.end())
    return MakeStatus(absl::StatusCode::kNotFound, "SCSI reservation {}: not held", id);
  const std::string path = reservation->second;
  for (;;) {
    // Waiting lets go of the mutex: the reservation may be given up meanwhile, and the disk with it.
    const auto it = disks_.find(path);
    if (reservations_.count(id) == 0 || it == disks_.end())
      return MakeStatus(absl::StatusCode::kNotFound, "SCSI reservation {}: given up meanwhile", id);
    if (!it->second.busy) break;
    const uint64_t attempt = it->second.attempt;
    changed_.Wait(mutex_);
    const auto now = disks_.find(path);
    if (now == disks_.end() || now->second.busy || now->second.attempt == attempt) continue;
    if (!now->second.outcome.ok()) return now->second.outcome;
  }
  Disk& disk = disks_.at(path);
  const uint32_t index = disk.controller, lun = disk.lun;
  if (disk.attached) return DiskPlace{controllers_[index].pci_path, 0, lun};
  const bool dirty = disk.dirty;
  const DiskFile file = disk.file;
  disk.busy = disk.dirty = true;
  mutex_.Unlock();
  absl::Status status;
  if (dirty) status = host_.RemoveDisk(index, lun);
  bool clean = status.ok();
  std::string pci_path;
  if (status.ok()) {
    const absl::StatusOr<std::string> controller = ControllerPath(index);
    status = controller.status();
    if (controller.ok()) {
      pci_path = *controller;
      status = host_.AddDisk(index, lun, file);
      if (!status.ok()) clean = host_.RemoveDisk(index, lun).ok();
    }
  }
  mutex_.Lock();
  disk.busy = false;
  disk.dirty = !status.ok() && !clean;
  disk.attached = status.ok();
  disk.outcome = Annotate(status, "attach disk " + path);
  ++disk.attempt;
  changed_.NotifyAll();
  if (!status.ok()) return disk.outcome;
  return DiskPlace{pci_path, 0, lun};
}

absl::Status ScsiDisks::Unmap(uint64_t id) {
  MutexLock lock(mutex_);
  for (;;) {
    const auto reservation = reservations_.find(id);
    if (reservation == reservations_.end()) return absl::OkStatus();
    const std::string path = reservation->second;
    Disk& disk = disks_.at(path);
    if (disk.users > 1) {
      --disk.users;
      reservations_.erase(reservation);
      changed_.NotifyAll();
      return absl::OkStatus();
    }
    if (disk.busy) {
      changed_.Wait(mutex_);
      continue;
    }
    absl::Status status;
    if (disk.attached || disk.dirty) {
      disk.attached = false;
      disk.busy = disk.dirty = true;
      const uint32_t controller = disk.controller, lun = disk.lun;
      mutex_.Unlock();
      status = host_.RemoveDisk(controller, lun);
      mutex_.Lock();
      disk.busy = false;
      disk.dirty = !status.ok();
      changed_.NotifyAll();
    }
    if (!status.ok()) return Annotate(status, "detach disk " + path);
    // Another may have reserved the disk while it went, and attaches it again; another call for this id may
    // have given it up.
    if (reservations_.erase(id) != 0 && --disk.users == 0) disks_.erase(path);
    return absl::OkStatus();
  }
}

absl::Status ScsiDisks::Grow(uint64_t id, uint64_t bytes) {
  MutexLock lock(mutex_);
  for (;;) {
    const auto reservation = reservations_.find(id);
    if (reservation == reservations_.end())
      return MakeStatus(absl::StatusCode::kNotFound, "SCSI reservation {}: not held", id);
    const std::string path = reservation->second;
    Disk& disk = disks_.at(path);
    if (disk.busy) {
      changed_.Wait(mutex_);
      continue;
    }
    if (!disk.attached)
      return MakeStatus(absl::StatusCode::kFailedPrecondition, "grow disk {}: it is not attached", path);
    disk.busy = true;
    const uint32_t controller = disk.controller, lun = disk.lun;
    mutex_.Unlock();
    const absl::Status status = host_.GrowDisk(controller, lun, bytes);
    mutex_.Lock();
    disk.busy = false;
    changed_.NotifyAll();
    return Annotate(status, fmt::format("grow disk {} to {} bytes", path, bytes));
  }
}

size_t ScsiDisks::reservations() const {
  MutexLock lock(mutex_);
  return reservations_.size();
}

size_t ScsiDisks::disks() const {
  MutexLock lock(mutex_);
  return disks_.size();
}

}  // namespace lamina::vmm
