#include "vmm/qemu_scsi.h"

#include <chrono>

#include "base/status.h"
#include "base/unique_fd.h"
#include "vmm/qemu_command.h"
#include "vmm/qemu_files.h"
#include "vmm/vm_spec.h"

namespace lamina::vmm {
namespace {

constexpr std::chrono::seconds kCommandTimeout{20};

// Ids of ours only: path characters never reach QEMU as an id.
std::string DiskId(uint32_t controller, uint32_t lun) { return fmt::format("disk-{}-{}", controller, lun); }

// The node that a disk's blocks come from. A file keeps QEMU's ordinary cache: what the guest flushes is
// synced here, and what it discards is a hole afterwards. A device of the host's is read and written past the
// cache, as others may have it too. No lock: the descriptor is all that QEMU has, and whose disk it is the
// host decides.
std::string BlockNode(const std::string& id, const std::string& file, bool writable,
                      const OpenedDisk& opened) {
  std::string words = writable ? R"(,"discard":"unmap")" : "";
  if (opened.block_device) words += R"(,"cache":{"direct":true})";
  return fmt::format(
      R"({{"driver":"raw","node-name":"{0}","read-only":{1}{2},"file":{{"driver":"{3}","filename":"{4}","read-only":{1},"locking":"off"{2}}}}})",
      id, !writable, words, opened.block_device ? "host_device" : "file", file);
}

// Errors are the guest's to see: by default QEMU stops the whole VM when the host's disk is full. A device of
// the host has its own blocks' sizes in the guest too.
std::string DeviceWords(bool writable, const OpenedDisk& opened) {
  std::string words;
  if (writable) words += R"(,"werror":"report","rerror":"report","rotation_rate":1)";
  if (opened.block_device) {
    words += fmt::format(R"(,"logical_block_size":{},"physical_block_size":{})", opened.logical_block_bytes,
                         opened.physical_block_bytes);
  }
  return words;
}

// QEMU said no, so nothing has changed; any other error leaves open whether it has.
bool Refused(const absl::Status& status) {
  return status.code() != absl::StatusCode::kDeadlineExceeded &&
         status.code() != absl::StatusCode::kUnavailable;
}

}  // namespace

absl::StatusOr<std::string> QemuScsi::AddController(uint32_t index) {
  uint32_t port = 0;
  {
    MutexLock lock(mutex_);
    const auto known = controller_ports_.find(index);  // an earlier call had no answer
    if (known != controller_ports_.end()) {
      port = known->second;
    } else {
      ASSIGN_OR_RETURN(port, ports_.Take());
      controller_ports_[index] = port;
    }
  }
  const absl::Status done =
      qmp_.Execute("device_add",
                   fmt::format(R"({{"driver":"virtio-scsi-pci","id":"scsi{}","bus":"{}"}})", index,
                               HotplugPortId(port)),
                   kCommandTimeout)
          .status();
  if (done.ok() || done.message().find("Duplicate device ID") != absl::string_view::npos)
    return HotplugPciPath(port);
  if (Refused(done)) {
    MutexLock lock(mutex_);
    controller_ports_.erase(index);
    ports_.GiveBack(port);
  }
  return Annotate(done, fmt::format("add SCSI controller {}", index));
}

absl::Status QemuScsi::AddDisk(uint32_t controller, uint32_t lun, const DiskFile& disk) {
  const std::string id = DiskId(controller, lun);
  ASSIGN_OR_RETURN(const OpenedDisk opened, OpenDisk(disk));
  ASSIGN_OR_RETURN(const HandedFile file, HandFile(qmp_, opened.fd.get()));
  const absl::Status added =
      qmp_.Execute("blockdev-add", BlockNode(id, file.set_path(), disk.writable, opened), kCommandTimeout)
          .status();
  // The block device has a duplicate of its own.
  const absl::Status taken_back = TakeFileBack(qmp_, file);
  RETURN_IF_ERROR(added);
  RETURN_IF_ERROR(taken_back);
  return qmp_
      .Execute(
          "device_add",
          fmt::format(
              R"({{"driver":"scsi-hd","id":"{0}","drive":"{0}","bus":"scsi{1}.0","scsi-id":0,"lun":{2}{3}}})",
              id, controller, lun, DeviceWords(disk.writable, opened)),
          kCommandTimeout)
      .status();
}

absl::Status QemuScsi::GrowDisk(uint32_t controller, uint32_t lun, uint64_t bytes) {
  return qmp_
      .Execute("block_resize",
               fmt::format(R"({{"node-name":"{}","size":{}}})", DiskId(controller, lun), bytes),
               kCommandTimeout)
      .status();
}

absl::Status QemuScsi::RemoveDisk(uint32_t controller, uint32_t lun) {
  const std::string id = DiskId(controller, lun);
  qmp_.ForgetDeleted(id);
  const absl::Status asked =
      qmp_.Execute("device_del", fmt::format(R"({{"id":"{}"}})", id), kCommandTimeout).status();
  // An earlier call that was not waited for to its end goes on.
  const bool going = asked.ok() || asked.message().find("process of unplug") != absl::string_view::npos;
  if (going) {
    RETURN_IF_ERROR(qmp_.WaitDeviceDeleted(id, kCommandTimeout));
  } else if (!absl::IsNotFound(asked)) {
    return asked;
  }
  const absl::Status done =
      qmp_.Execute("blockdev-del", fmt::format(R"({{"node-name":"{}"}})", id), kCommandTimeout).status();
  // It is not there: AddDisk got no further, or an earlier call whose answer was lost has done it.
  if (done.message().find("Failed to find node") != absl::string_view::npos) return absl::OkStatus();
  return done;
}

}  // namespace lamina::vmm
