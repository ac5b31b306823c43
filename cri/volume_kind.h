// What a bind mount's source is, by where it lies: the kubelet's folders, containerd's, or any other.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/proc.h"

namespace lamina::cri {

enum class VolumeKind {
  kPodShm,          // containerd's /dev/shm of the pod
  kMemory,          // emptyDir of medium Memory
  kDisk,            // emptyDir on disk
  kFiles,           // small files that the kubelet or containerd writes: ConfigMap, Secret, hosts, …
  kTerminationLog,  // a file of the kubelet's that the container writes
  kSocket,          // a socket of the host
  kShared,          // everything else
};
// In words, for notes and logs.
const char* VolumeKindName(VolumeKind kind);

// Where a path lies, whatever it is called: two with the same place are the same file.
struct Place {
  std::string device;  // "8:1"
  std::string path;    // in the device's file system, "/kubelet/pods/…"
};
// `path` has no links in it. Nothing: no mount has it.
std::optional<Place> PlaceOf(const std::vector<MountEntry>& mounts, std::string_view path);

// A path of the kubelet's folder of a pod, taken apart: <…/pods/<uid>>/<what>/….
struct KubeletPath {
  enum class What { kVolume, kSubPath, kHosts, kTerminationLog };
  What what = What::kVolume;
  std::string pod_dir;  // …/pods/<uid>
  std::string plugin;   // of a volume: "empty-dir", "configmap"; without "kubernetes.io~"
  std::string name;     // of the volume, also of a subPath's
  std::string rest;     // of a volume: what follows, "" or "a/b"
};
// The kubelet's root may be anywhere. Nothing: it is no such path.
std::optional<KubeletPath> ParseKubeletPath(std::string_view path);

struct VolumeSource {
  VolumeKind kind = VolumeKind::kShared;
  std::string path;  // the volume's own folder on the host, or the source itself
  std::string sub;   // of an emptyDir: the folder in it that the source stands for, "" or "a/b"
};

// `source` as the spec has it; `mounts` are the shim's. A memory volume is one whose own folder is a tmpfs. A
// subPath of an emptyDir is found behind the kubelet's bind mount by its place. NotFound, and what stat says,
// with the path.
absl::StatusOr<VolumeSource> SortVolume(const std::string& source, const std::vector<MountEntry>& mounts);

}  // namespace lamina::cri
