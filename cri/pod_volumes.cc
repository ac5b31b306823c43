#include "cri/pod_volumes.h"

#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <utility>

#include "base/file_system.h"
#include "base/log.h"
#include "base/sha256.h"
#include "base/status.h"
#include "base/units.h"
#include "cri/guest_files.h"
#include "cri/pod_files.h"
#include "cri/volumes.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"

namespace lamina::cri {
namespace {

using persist::PodVolume;
using persist::SandboxState;

constexpr std::chrono::seconds kAgentTimeout{30};

std::string RealPath(const std::string& path) {
  char real[PATH_MAX];
  return realpath(path.c_str(), real) == nullptr ? path : real;
}

std::string In(const std::string& folder, const std::string& inner) {
  return inner.empty() ? folder : folder + "/" + inner;
}

// `path` below `folder`, without it; nothing: it is not.
std::optional<std::string> Below(const std::string& path, const std::string& folder) {
  const std::string prefix = folder == "/" ? folder : folder + "/";
  if (!path.starts_with(prefix) || path.size() == prefix.size()) return std::nullopt;
  return path.substr(prefix.size());
}

// How large the kubelet lets a memory volume grow. 0: as large as the kernel lets it, where it says no size
// or one that is no bound (half of the host's memory and more).
uint64_t SizeLimit(const std::string& folder) {
  struct statfs info {};
  struct sysinfo host {};
  if (statfs(folder.c_str(), &info) != 0 || sysinfo(&host) != 0) return 0;
  const uint64_t bytes = static_cast<uint64_t>(info.f_blocks) * static_cast<uint64_t>(info.f_bsize);
  return bytes >= uint64_t{host.totalram} * host.mem_unit / 2 ? 0 : bytes;
}

// Of a volume that stays as long as the pod: made twice, because a shim died in between, it is the same one.
std::string LastingName(VolumeKind kind, const std::string& folder) {
  return "p" + Sha256(fmt::format("{}\n{}", VolumeKindName(kind), folder)).substr(0, 20);
}

bool IsOf(const PodVolume& volume, VolumeKind kind) { return volume.kind == VolumeKindName(kind); }

// What containers wrote there is for the next ones.
bool StaysWithThePod(const PodVolume& volume) {
  return IsOf(volume, VolumeKind::kMemory) || IsOf(volume, VolumeKind::kDisk) ||
         IsOf(volume, VolumeKind::kSocket);
}

// What the guest cannot keep, virtiofs can show.
bool CanBeShared(const absl::Status& status) {
  return absl::IsResourceExhausted(status) || absl::IsInvalidArgument(status) ||
         absl::IsFailedPrecondition(status) || absl::IsUnavailable(status);
}

absl::Status Describe(const std::string& path, agent::v1::Folder& folder) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "volume " + path);
  folder.set_uid(info.st_uid);
  folder.set_gid(info.st_gid);
  folder.set_mode(info.st_mode & 07777);
  return absl::OkStatus();
}

}  // namespace

std::string PodVolumes::SharedDir() const {
  return book_.Look([](const SandboxState& state) { return state.runtime_dir + "/shared"; });
}

void PodVolumes::Restore(const SandboxState& state) {
  MutexLock lock(mutex_);
  volumes_.clear();
  for (const PodVolume& volume : state.volumes) {
    volumes_[volume.name] = {volume, 0};
    unsigned long long number = 0;
    if (sscanf(volume.name.c_str(), "v%llu", &number) == 1) next_ = std::max<uint64_t>(next_, number + 1);
  }
  for (const auto& [id, container] : state.containers) {
    for (const std::string& name : container.mounts) {
      // A state from before volumes were the pod's: each is its container's own.
      Volume& volume = volumes_[name];
      if (volume.is.name.empty())
        volume.is = {name, VolumeKindName(VolumeKind::kShared), "", "", "", true, false};
      ++volume.users;
    }
  }
  // Given back, though the state does not say so.
  std::erase_if(volumes_, [&](const auto& entry) {
    const auto& [name, volume] = entry;
    if (volume.users > 0 || volume.is.kind != VolumeKindName(VolumeKind::kShared)) return false;
    const absl::Status unbound = UnbindVolume(state.runtime_dir + "/shared", name);
    if (!unbound.ok()) LogWarning("volume {}: {}", volume.is.source, Message(unbound));
    return true;
  });
}

void PodVolumes::Attach(ttrpc::Caller& agent) {
  agent_ = &agent;
  MutexLock lock(mutex_);
  std::erase_if(volumes_, [&](const auto& entry) {
    const PodVolume& is = entry.second.is;
    absl::Status status;
    if (IsOf(is, VolumeKind::kSocket)) status = sockets_.Offer(is.source).status();
    const bool files = IsOf(is, VolumeKind::kFiles), unused = entry.second.users == 0;
    const bool kept = files || IsOf(is, VolumeKind::kTerminationLog);
    if (kept && unused) status = RemoveFiles(is);  // given back, though the state does not say so
    if (files && !unused) status = FillFiles(is, FileFollower::First::kSoon);
    if (!unused) NoteLog(is);
    if (!status.ok()) LogWarning("volume {} in the guest: {}", is.source, Message(status));
    return kept && unused;
  });
}

std::vector<PodVolume> PodVolumes::Known() const {
  MutexLock lock(mutex_);
  std::vector<PodVolume> known;
  for (const auto& [name, volume] : volumes_) known.push_back(volume.is);
  return known;
}

// Never the same again: the guest remembers names of the shared directory for a while.
std::string PodVolumes::NewName() { return fmt::format("v{}", next_++); }

void PodVolumes::Use(Volume& volume, Taken& taken) {
  if (std::find(taken.names.begin(), taken.names.end(), volume.is.name) != taken.names.end()) return;
  taken.names.push_back(volume.is.name);
  ++volume.users;
}

absl::Status PodVolumes::Take(const BundleSpec& spec, Taken& taken) {
  ASSIGN_OR_RETURN(const std::string info, FileSystem::Real().Read("/proc/self/mountinfo", 64 * kMiB));
  const Mounts mounts = ParseMountinfo(info);
  const bool pod_files = book_.Look([](const SandboxState& state) { return state.has_pod_files; });
  // A folder before what lies in it, so that both are one volume; writers first, for whom it is made
  // writable.
  std::vector<size_t> order(spec.mounts.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const SpecMount &one = spec.mounts[a], &two = spec.mounts[b];
    return std::pair(one.source.size(), one.read_only()) < std::pair(two.source.size(), two.read_only());
  });
  MutexLock lock(mutex_);
  for (const size_t i : order) {
    const SpecMount& mount = spec.mounts[i];
    if (!mount.is_bind()) continue;
    if (pod_files && IsPodFileMount(mount.source, mount.destination)) {
      taken.sources[i] = mount.source;  // in the guest's memory already
      continue;
    }
    ASSIGN_OR_RETURN(taken.sources[i], Place(mount, mounts, taken));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> PodVolumes::Place(const SpecMount& mount, const Mounts& mounts, Taken& taken) {
  ASSIGN_OR_RETURN(VolumeSource source, SortVolume(mount.source, mounts));
  if (source.kind == VolumeKind::kDisk && disks_ == nullptr) source.kind = VolumeKind::kShared;
  taken.notes.push_back(
      fmt::format("{} ({}): {}", mount.destination, mount.source, VolumeKindName(source.kind)));
  switch (source.kind) {
    case VolumeKind::kPodShm:
      return guest::kShmDirectory;
    case VolumeKind::kMemory:
    case VolumeKind::kDisk:
      return KeepInGuest(source, taken);
    case VolumeKind::kSocket:
      return OfferSocket(source, taken);
    case VolumeKind::kFiles:
    case VolumeKind::kTerminationLog:
      return KeepFiles(mount, source, mounts, taken);
    default:
      return Share(mount, mounts, taken);
  }
}

PodVolumes::Volume* PodVolumes::FindShared(const PodVolume& wanted, const Mounts& mounts,
                                           std::string& inner) {
  for (auto& [name, volume] : volumes_) {
    const PodVolume& is = volume.is;
    if (is.kind != wanted.kind || is.device != wanted.device || is.follows_host != wanted.follows_host)
      continue;
    if (is.place == wanted.place) {
      inner.clear();
      return &volume;
    }
    const auto below = Below(wanted.place, is.place);
    if (!below) continue;
    // What is mounted on the way hides it from who comes through the volume.
    const std::string root = RealPath(is.source), through = In(root, *below);
    const bool hidden = std::any_of(mounts.begin(), mounts.end(), [&](const MountEntry& entry) {
      return Below(entry.point, root) && (entry.point == through || Below(through, entry.point));
    });
    if (hidden) continue;
    inner = *below;
    return &volume;
  }
  return nullptr;
}

absl::StatusOr<std::string> PodVolumes::Share(const SpecMount& mount, const Mounts& mounts, Taken& taken) {
  const std::string shared_dir = SharedDir(), real = RealPath(mount.source);
  PodVolume wanted{
      "", VolumeKindName(VolumeKind::kShared), mount.source, "", "", mount.read_only(), mount.follows_host()};
  if (const auto place = PlaceOf(mounts, real)) {
    wanted.device = place->device;
    wanted.place = place->path;
  }
  std::string inner;
  Volume* volume = wanted.device.empty() ? nullptr : FindShared(wanted, mounts, inner);
  if (volume == nullptr) {
    wanted.name = NewName();
    RETURN_IF_ERROR(BindVolume(shared_dir, wanted.name, mount.source,
                               {mount.read_only(), mount.recursive_read_only(), mount.follows_host()}));
    volume = &volumes_[wanted.name];
    volume->is = wanted;
  }
  Use(*volume, taken);
  if (volume->is.read_only && !mount.read_only()) {
    const auto virtiofsd = book_.Look([](const SandboxState& state) { return state.virtiofsd.pid; });
    RETURN_IF_ERROR(LetWrite(shared_dir, volume->is.name, virtiofsd));
    volume->is.read_only = false;
  }
  const std::string in_guest = In(fmt::format("{}/{}", guest::kSharedDirectory, volume->is.name), inner);
  if (mount.read_only() && !mount.recursive_read_only()) {
    for (const MountEntry& entry : mounts) {
      if (const auto below = Below(entry.point, real)) taken.host_mounts.push_back(In(in_guest, *below));
    }
  }
  return in_guest;
}

absl::StatusOr<std::string> PodVolumes::KeepInGuest(const VolumeSource& source, Taken& taken) {
  const PodVolume wanted{
      LastingName(source.kind, source.path), VolumeKindName(source.kind), source.path, "", "", false, false};
  const bool is_new = volumes_.count(wanted.name) == 0;
  agent::v1::MountVolumeRequest request;
  request.set_name(wanted.name);
  RETURN_IF_ERROR(Describe(source.path, *request.mutable_root()));
  for (size_t end = source.sub.find('/'); !source.sub.empty(); end = source.sub.find('/', end + 1)) {
    agent::v1::Folder& folder = *request.add_folders();
    folder.set_path(source.sub.substr(0, end));
    RETURN_IF_ERROR(Describe(In(source.path, folder.path()), folder));
    if (end == std::string::npos) break;
  }
  if (is_new || request.folders_size() > 0)
    RETURN_IF_ERROR(Annotate(MountInGuest(source, request), "volume " + source.path));
  Volume& volume = volumes_[wanted.name];
  if (is_new) volume.is = wanted;
  Use(volume, taken);
  return In(fmt::format("{}/{}", guest::kVolumesDirectory, wanted.name), source.sub);
}

absl::StatusOr<std::string> PodVolumes::OfferSocket(const VolumeSource& source, Taken& taken) {
  ASSIGN_OR_RETURN(std::string in_guest, sockets_.Offer(source.path));
  const std::string name = LastingName(VolumeKind::kSocket, source.path);
  Volume& volume = volumes_[name];
  volume.is = {name, VolumeKindName(VolumeKind::kSocket), source.path, "", "", false, false};
  Use(volume, taken);
  return in_guest;
}

absl::Status PodVolumes::MountInGuest(const VolumeSource& source, agent::v1::MountVolumeRequest& request) {
  if (source.kind == VolumeKind::kDisk) {
    // It is the pod's, and so may outlive this VM: the kubelet removes it with the folder.
    return disks_->AddImage(source.path + "/" + kVolumeImage,
                            {.bytes = disk_bytes_, .journal = true, .keep = true}, request);
  }
  request.mutable_memory()->set_size_bytes(SizeLimit(source.path));
  return ttrpc::Call(*agent_, guest::kMountVolume, request, kAgentTimeout).status();
}

absl::Status PodVolumes::FillFiles(const PodVolume& volume, FileFollower::First first) {
  const auto push = [agent = agent_, name = volume.name, source = volume.source] {
    return PushFiles(*agent, name, source);
  };
  // The container alone writes its termination log.
  if (!IsOf(volume, VolumeKind::kFiles)) return push();
  return follower_.Follow(volume.name, volume.source, push, first);
}

absl::StatusOr<std::string> PodVolumes::KeepFiles(const SpecMount& mount, const VolumeSource& source,
                                                  const Mounts& mounts, Taken& taken) {
  const std::string name = LastingName(source.kind, source.path);
  if (volumes_.count(name) == 0) {
    const PodVolume wanted{name, VolumeKindName(source.kind), source.path, "", "", false, false};
    const absl::Status status = FillFiles(wanted, FileFollower::First::kNow);
    if (CanBeShared(status) && agent_->connected()) {
      taken.notes.push_back(fmt::format("{} ({}): {} instead: {}", mount.destination, mount.source,
                                        VolumeKindName(VolumeKind::kShared), Message(status)));
      return Share(mount, mounts, taken);
    }
    RETURN_IF_ERROR(Annotate(status, "volume " + source.path));
    volumes_[name].is = wanted;
    NoteLog(wanted);
  }
  Use(volumes_[name], taken);
  return KeptFilesPath(name);
}

void PodVolumes::BringLogs(const std::vector<std::string>& names) {
  std::map<std::string, std::string> logs;
  {
    MutexLock lock(logs_mutex_);
    for (const std::string& name : names) {
      if (const auto it = logs_.find(name); it != logs_.end()) logs.insert(*it);
    }
  }
  for (const auto& [name, path] : logs) {
    const absl::Status status = BringFile(*agent_, name, path);
    if (!status.ok()) LogWarning("termination log {}: {}", path, Message(status));
  }
}

void PodVolumes::NoteLog(const PodVolume& volume) {
  if (!IsOf(volume, VolumeKind::kTerminationLog)) return;
  MutexLock lock(logs_mutex_);
  logs_[volume.name] = volume.source;
}

absl::Status PodVolumes::RemoveFiles(const PodVolume& volume) {
  follower_.Forget(volume.name);
  {
    MutexLock lock(logs_mutex_);
    logs_.erase(volume.name);
  }
  // With the VM its memory goes.
  if (agent_ == nullptr || !agent_->connected()) return absl::OkStatus();
  agent::v1::UnmountVolumeRequest request;
  request.set_name(volume.name);
  return Annotate(ttrpc::Call(*agent_, guest::kUnmountVolume, request, kAgentTimeout).status(),
                  "volume " + volume.source);
}

absl::Status PodVolumes::GiveBack(const std::vector<std::string>& names) {
  const std::string shared_dir = SharedDir();
  absl::Status first;
  MutexLock lock(mutex_);
  for (const std::string& name : names) {
    const auto it = volumes_.find(name);
    if (it == volumes_.end() || --it->second.users > 0) continue;
    const PodVolume& is = it->second.is;
    if (StaysWithThePod(is)) continue;
    first.Update(IsOf(is, VolumeKind::kShared) ? UnbindVolume(shared_dir, name) : RemoveFiles(is));
    volumes_.erase(it);
  }
  return first;
}

}  // namespace lamina::cri
