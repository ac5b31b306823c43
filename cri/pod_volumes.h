// What a pod's containers have mounted beside their roots: each volume once for the pod, so that one file is
// one inode for all of them, each by its nature (volume_kind.h). docs/shim.md has the table.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/proc.h"
#include "base/ttrpc/method.h"
#include "cri/file_follower.h"
#include "cri/host_sockets.h"
#include "cri/oci_spec.h"
#include "cri/pod_disks.h"
#include "cri/state_book.h"
#include "cri/volume_kind.h"

namespace lamina::cri {

// Thread-safe. Its lock is held while volumes are made and removed; calls to the guest are bounded.
class PodVolumes {
 public:
  // `disks`, which outlive it, take the emptyDirs on disk, of `disk_bytes` each; null: they are shared.
  PodVolumes(StateBook& book, HostSockets& sockets, PodDisks* disks = nullptr, uint64_t disk_bytes = 0)
      : book_(book), sockets_(sockets), disks_(disks), disk_bytes_(disk_bytes) {}

  // The guest's agent, which must live as long as this does; the sockets are attached by then. Of volumes
  // that Restore has found the guest's files are brought up to date, soon, and followed from here on.
  void Attach(ttrpc::Caller& agent);
  // Goes on where another process stopped: with the volumes that the state names. Before Attach.
  void Restore(const persist::SandboxState& state);

  // What one container has of them.
  struct Taken {
    std::vector<std::string> names;         // each once
    std::map<size_t, std::string> sources;  // index in the spec's mounts -> where the guest finds it
    std::vector<std::string> host_mounts;   // agent.proto, CreateContainerRequest
    std::vector<std::string> notes;         // for people: what came in which way
  };
  // Makes those of the spec's bind mounts visible in the guest that are not yet. Errors name the source; what
  // `taken` has then is to be given back.
  absl::Status Take(const BundleSpec& spec, Taken& taken);
  // The container's init has ended: what it wrote into a termination log among these volumes goes into its
  // file on the host. At most two seconds for each; what fails is logged.
  void BringLogs(const std::vector<std::string>& names);
  // The container is gone, in the guest too. A volume that nobody uses any more is unmounted, but that
  // emptyDirs and sockets stay as long as the pod: what containers wrote there is for the next ones. Not to
  // be repeated.
  absl::Status GiveBack(const std::vector<std::string>& names);

  // As the state names them.
  std::vector<persist::PodVolume> Known() const;

 private:
  struct Volume {
    persist::PodVolume is;
    uint32_t users = 0;
  };
  using Mounts = std::vector<MountEntry>;

  // Where the guest finds the source of this mount.
  absl::StatusOr<std::string> Place(const SpecMount& mount, const Mounts& mounts, Taken& taken)
      REQUIRES(mutex_);
  absl::StatusOr<std::string> Share(const SpecMount& mount, const Mounts& mounts, Taken& taken)
      REQUIRES(mutex_);
  // One that has the place in it, and "" or the path to it; null: none.
  Volume* FindShared(const persist::PodVolume& wanted, const Mounts& mounts, std::string& inner)
      REQUIRES(mutex_);
  absl::StatusOr<std::string> KeepInGuest(const VolumeSource& source, Taken& taken) REQUIRES(mutex_);
  absl::Status MountInGuest(const VolumeSource& source, agent::v1::MountVolumeRequest& request)
      REQUIRES(mutex_);
  absl::StatusOr<std::string> OfferSocket(const VolumeSource& source, Taken& taken) REQUIRES(mutex_);
  absl::StatusOr<std::string> KeepFiles(const SpecMount& mount, const VolumeSource& source,
                                        const Mounts& mounts, Taken& taken) REQUIRES(mutex_);
  absl::Status FillFiles(const persist::PodVolume& volume, FileFollower::First first);
  absl::Status RemoveFiles(const persist::PodVolume& volume);
  void NoteLog(const persist::PodVolume& volume);
  std::string NewName() REQUIRES(mutex_);
  void Use(Volume& volume, Taken& taken) REQUIRES(mutex_);
  std::string SharedDir() const;

  StateBook& book_;
  HostSockets& sockets_;
  PodDisks* const disks_;
  const uint64_t disk_bytes_;
  ttrpc::Caller* agent_ = nullptr;
  mutable Mutex mutex_;
  std::map<std::string, Volume> volumes_ GUARDED_BY(mutex_);  // by name
  uint64_t next_ GUARDED_BY(mutex_) = 1;
  // After mutex_: a container's end does not wait while volumes of another are made.
  mutable Mutex logs_mutex_;
  std::map<std::string, std::string> logs_ GUARDED_BY(logs_mutex_);  // termination log's name -> host file
  FileFollower follower_;
};

}  // namespace lamina::cri
