#include "cri/volumes.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "base/file_system.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/status.h"
#include "base/ttrpc/thread.h"
#include "base/unique_fd.h"
#include "base/units.h"

namespace lamina::cri {
namespace {

constexpr int kUnmountPasses = 256;  // mounts stacked on one point

std::string PointsDir(const std::string& shared_dir) { return shared_dir + ".points"; }

// Mount points at or below `dir`, outer ones first.
absl::StatusOr<std::vector<std::string>> MountsBelow(const std::string& dir) {
  ASSIGN_OR_RETURN(const std::string info, FileSystem::Real().Read("/proc/self/mountinfo", 64 * kMiB));
  std::vector<std::string> points;
  for (MountEntry& mount : ParseMountinfo(info)) {
    if (mount.point == dir || mount.point.starts_with(dir + "/")) points.push_back(std::move(mount.point));
  }
  std::sort(points.begin(), points.end());
  return points;
}

// A copy of the mounts at `source` that is mounted nowhere yet. Only when it is as it shall be it is put
// somewhere, so nobody ever sees it otherwise.
absl::StatusOr<UniqueFd> CopyMounts(const std::string& source, bool recursive, VolumeOptions options,
                                    uint64_t propagation) {
  const unsigned recurse = recursive ? AT_RECURSIVE : 0;
  UniqueFd tree(open_tree(AT_FDCWD, source.c_str(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | recurse));
  if (!tree) return ErrnoStatus(errno, "open " + source);
  mount_attr attributes{};
  // A copy is its original's peer at first: unmounting something in it would unmount it on the host.
  attributes.propagation = propagation;
  attributes.attr_set =
      MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (options.recursive_read_only ? MOUNT_ATTR_RDONLY : 0);
  mount_attr top{};
  top.attr_set = options.read_only ? MOUNT_ATTR_RDONLY : 0;
  if (mount_setattr(tree.get(), "", AT_EMPTY_PATH | recurse, &attributes, sizeof attributes) != 0 ||
      mount_setattr(tree.get(), "", AT_EMPTY_PATH, &top, sizeof top) != 0) {
    return ErrnoStatus(errno, "set the mount attributes of " + source);
  }
  return tree;
}

absl::Status PutMounts(const UniqueFd& tree, const std::string& target) {
  if (move_mount(tree.get(), "", AT_FDCWD, target.c_str(), MOVE_MOUNT_F_EMPTY_PATH) != 0)
    return ErrnoStatus(errno, "mount at " + target);
  return absl::OkStatus();
}

}  // namespace

absl::Status MakeSharedDir(const std::string& dir) {
  ASSIGN_OR_RETURN(const std::vector<std::string> mounted, MountsBelow(dir));
  if (!mounted.empty()) return absl::OkStatus();
  const std::string points = PointsDir(dir);
  for (const std::string& made : {points, dir})
    RETURN_IF_ERROR(FileSystem::Real().MakeDirectories(made, 0700));
  // The share's root is what the guest sees as /run/lamina/shared; the parent directory keeps strangers out.
  if (chmod(points.c_str(), 0755) != 0) return ErrnoStatus(errno, "chmod " + points);
  // A peer group of its own, whatever the parent is: so what is mounted in it reaches virtiofsd's namespace.
  ASSIGN_OR_RETURN(const UniqueFd tree, CopyMounts(points, false, {.read_only = true}, MS_PRIVATE));
  RETURN_IF_ERROR(PutMounts(tree, dir));
  if (mount(nullptr, dir.c_str(), nullptr, MS_SHARED, nullptr) == 0) return absl::OkStatus();
  const absl::Status status = ErrnoStatus(errno, "let what is mounted in " + dir + " reach virtiofsd");
  umount2(dir.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
  return status;
}

absl::Status BindVolume(const std::string& shared_dir, const std::string& name, const std::string& source,
                        VolumeOptions options) {
  absl::StatusOr<UniqueFd> tree =
      CopyMounts(source, true, options, options.follows_host ? MS_SLAVE : MS_PRIVATE);
  if (!tree.ok()) return Annotate(tree.status(), "volume " + source);
  struct stat info {};
  if (fstat(tree->get(), &info) != 0) return ErrnoStatus(errno, "stat volume " + source);
  const std::string point = PointsDir(shared_dir) + "/" + name;
  if (S_ISDIR(info.st_mode)) {
    if (mkdir(point.c_str(), 0755) != 0 && errno != EEXIST) return ErrnoStatus(errno, "mkdir " + point);
  } else {
    const UniqueFd file(open(point.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
    if (!file) return ErrnoStatus(errno, "create " + point);
  }
  const absl::Status status = PutMounts(*tree, shared_dir + "/" + name);
  if (!status.ok()) UnbindVolume(shared_dir, name).IgnoreError();
  return Annotate(status, "volume " + source);
}

absl::Status LetWrite(const std::string& shared_dir, const std::string& name, pid_t virtiofsd) {
  mount_attr writable{};
  writable.attr_clr = MOUNT_ATTR_RDONLY;
  const std::string path = shared_dir + "/" + name;
  if (mount_setattr(AT_FDCWD, path.c_str(), AT_SYMLINK_NOFOLLOW, &writable, sizeof writable) != 0)
    return ErrnoStatus(errno, "let the guest write " + path);
  if (virtiofsd <= 0) return absl::OkStatus();
  // Its root is the shared directory itself.
  const std::string process = fmt::format("/proc/{}", virtiofsd);
  const UniqueFd space(open((process + "/ns/mnt").c_str(), O_RDONLY | O_CLOEXEC));
  const UniqueFd root(open((process + "/root").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!space || !root) return ErrnoStatus(errno, "open virtiofsd's mount namespace");
  absl::Status status;
  // A thread that has joined another namespace is of no more use here.
  ASSIGN_OR_RETURN(
      std::thread thread, ttrpc::NewThread([&] {
        if (unshare(CLONE_FS) != 0 || setns(space.get(), CLONE_NEWNS) != 0 ||
            mount_setattr(root.get(), name.c_str(), AT_SYMLINK_NOFOLLOW, &writable, sizeof writable) != 0) {
          status = ErrnoStatus(errno, fmt::format("let virtiofsd write {}", name));
        }
      }));
  thread.join();
  return status;
}

absl::Status UnbindVolume(const std::string& shared_dir, const std::string& name) {
  RETURN_IF_ERROR(UnmountTree(shared_dir + "/" + name));
  const std::string point = PointsDir(shared_dir) + "/" + name;
  if (remove(point.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, "remove " + point);
  return absl::OkStatus();
}

absl::Status UnmountTree(const std::string& dir) {
  for (int pass = 0; pass < kUnmountPasses; ++pass) {
    ASSIGN_OR_RETURN(const std::vector<std::string> points, MountsBelow(dir));
    if (points.empty()) return absl::OkStatus();
    std::string outer;
    for (const std::string& point : points) {
      // Detaching the outer one takes along what is mounted in it.
      if (!outer.empty() && (point == outer || point.rfind(outer + "/", 0) == 0)) continue;
      outer = point;
      if (umount2(point.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0 && errno != EINVAL && errno != ENOENT)
        return ErrnoStatus(errno, "unmount " + point);
    }
  }
  return MakeStatus(absl::StatusCode::kInternal, "unmount {}: more than {} mounts on one point", dir,
                    kUnmountPasses);
}

}  // namespace lamina::cri
