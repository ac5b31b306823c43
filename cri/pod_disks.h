// The disks of a pod that are written: containers' writable layers, emptyDirs, block devices of the node.
// Each is a volume of the guest, by its name.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/ttrpc/method.h"
#include "cri/block_device.h"
#include "cri/disk_image.h"
#include "cri/oci_spec.h"
#include "cri/state_book.h"
#include "cri/threads.h"
#include "proto/agent.pb.h"
#include "vmm/vm.h"

namespace lamina::cri {

// What the guest is told of a device that a container has, and that is this volume of the guest's.
agent::v1::ContainerDevice GuestDevice(const SpecDevice& device, const std::string& volume);

// The volume with a container's writable layer.
std::string RootVolume(const std::string& container_id);

// An image is sparse, and others take from the same disk of the node: as soon as that has less free than the
// guest believes, the guest is told, so that who writes there is told too.
//
// Thread-safe; one name is worked on by one caller at a time, different ones in parallel. Calls to the VM and
// its guest are bounded.
class PodDisks {
 public:
  // A device of the node that has grown, and a disk that becomes full, are seen within `look_every`.
  explicit PodDisks(StateBook& book, std::chrono::milliseconds look_every = std::chrono::seconds(2))
      : book_(book), look_every_(look_every) {}
  ~PodDisks();

  // The VM and its agent, which must live as long as this is used.
  void Attach(vmm::Vm& vm, ttrpc::Caller& agent);
  // Goes on where another process stopped. Disks that it attached stay with the VM until its end.
  void Restore(const persist::SandboxState& state);

  // Makes the image and has the guest mount it: `volume` says name, owner, mode and folders. Where the volume
  // is there already only its folders are made. One that is not to be kept stands in the state before it is
  // made. On error all is as before.
  absl::Status AddImage(const std::string& path, const DiskImageOptions& options,
                        agent::v1::MountVolumeRequest volume);
  // Gives the guest the node's device, whose size it follows where it is writable. Gives the volume's name,
  // the same for all who have the device; each of them Removes it once. NotFound: there is none.
  // FailedPrecondition: wanted writable, and others have it to be read only.
  absl::StatusOr<std::string> AddDevice(DeviceNumber number, bool writable);
  // The guest lets go of it, then the VM; an image that is not kept is removed, whatever guest and VM say.
  // What they have not let go of goes with the VM. OK for what is not there (any more).
  absl::Status Remove(const std::string& name);

 private:
  struct Disk {
    std::optional<uint64_t> reservation;  // none: another process made it
    size_t users = 1;
    std::string path;        // of an image
    bool kept = false;       // it is not to be removed with the disk
    uint64_t held_back = 0;  // of what is free in it: the node's disk has not so much
    std::optional<DeviceNumber> device;
    bool writable = false;
    uint64_t bytes = 0;
  };

  absl::Status Plug(vmm::DiskFile file, uint64_t bytes, Disk& disk, agent::v1::ScsiDisk& place);
  absl::Status NoteInState(const std::string& name, const std::string& image);
  absl::Status TellGuest(const agent::v1::MountVolumeRequest& volume);
  absl::Status TakeAway(const std::string& name, const Disk& disk, bool guest_has_it);
  absl::Status RemoveLast(const std::string& name);
  absl::Status Watch() REQUIRES(mutex_);
  // The devices that are larger than the VM knows; the images whose disk has another room than the guest
  // knows.
  std::map<std::string, Disk> Grown();
  std::map<std::string, uint64_t> Rooms();
  void TellRoom(const std::string& name, uint64_t room);
  void FollowSizes();

  StateBook& book_;
  const std::chrono::milliseconds look_every_;
  vmm::Vm* vm_ = nullptr;
  ttrpc::Caller* agent_ = nullptr;
  Mutex devices_mutex_;  // one device at a time; before mutex_
  mutable Mutex mutex_;
  CondVar stopping_;
  bool stopped_ GUARDED_BY(mutex_) = false;
  bool watching_ GUARDED_BY(mutex_) = false;
  std::map<std::string, Disk> disks_ GUARDED_BY(mutex_);  // by name
  Threads threads_;
};

}  // namespace lamina::cri
