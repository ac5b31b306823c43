#include "guest/agent/overlay.h"

#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "base/log.h"
#include "base/status.h"
#include "base/ttrpc/thread.h"
#include "guest/protocol/contract.h"

namespace lamina::guest {
namespace {

absl::Status MakeDirectory(const std::string& path, mode_t mode) {
  if (mkdir(path.c_str(), mode) != 0 && errno != EEXIST) return ErrnoStatus(errno, "mkdir " + path);
  return absl::OkStatus();
}

absl::Status UnmountOne(const std::string& path) {
  if (umount2(path.c_str(), UMOUNT_NOFOLLOW) == 0 || errno == EINVAL || errno == ENOENT)
    return absl::OkStatus();
  if (errno == EBUSY) {
    LogWarning("{} is busy: detached", path);
    if (umount2(path.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH) == 0) return absl::OkStatus();
  }
  return ErrnoStatus(errno, "unmount " + path);
}

// Relative lower directories are looked up from the caller's working directory, which threads share unless
// one takes a copy for itself; that cannot be given back, so a thread is spent on it.
absl::Status MountFrom(const std::string& directory, const std::string& target, const std::string& options) {
  absl::Status status;
  const auto mount_there = [&] {
    if (unshare(CLONE_FS) != 0) {
      status = ErrnoStatus(errno, "unshare the working directory");
    } else if (chdir(directory.c_str()) != 0) {
      status = ErrnoStatus(errno, "chdir " + directory);
    } else if (mount("overlay", target.c_str(), "overlay", 0, options.c_str()) != 0) {
      status =
          ErrnoStatus(errno, fmt::format("mount the overlay on {} with {}", target, options.substr(0, 512)));
    }
  };
  ASSIGN_OR_RETURN(std::thread thread, ttrpc::NewThread(mount_there));
  thread.join();
  return status;
}

}  // namespace

absl::StatusOr<std::string> OverlayOptions(const std::vector<std::string>& lower, std::string_view upper,
                                           std::string_view work) {
  if (lower.empty() || lower.size() > kMaxLayersPerContainer) {
    return InvalidArgument("overlay of {} layers: want 1 to {}", lower.size(), kMaxLayersPerContainer);
  }
  std::string options = "lowerdir=";
  for (size_t i = 0; i < lower.size(); ++i) {
    if (lower[i].empty() || lower[i].find_first_of(":,\\") != std::string::npos) {
      return InvalidArgument("overlay: \"{}\" cannot be a lower directory", lower[i]);
    }
    if (i > 0) options += ':';
    options += lower[i];
  }
  options += fmt::format(",upperdir={},workdir={}", upper, work);
  if (options.size() > 4095)
    return InvalidArgument("overlay: {} bytes of options, over a page", options.size());
  return options;
}

absl::Status MountOverlay(const std::string& directory, const std::string& links_directory,
                          const std::vector<std::string>& links, const std::string& top_layer,
                          const std::string& writable) {
  const std::string rw = writable.empty() ? directory + "/rw" : writable, rootfs = directory + "/rootfs";
  const std::string upper = rw + "/u", work = rw + "/w";
  ASSIGN_OR_RETURN(const std::string options, OverlayOptions(links, upper, work));
  RETURN_IF_ERROR(MakeDirectory(rootfs, 0755));
  if (writable.empty()) RETURN_IF_ERROR(MakeDirectory(rw, 0700));
  // What is written here is charged to the memory cgroup of the writer.
  if (writable.empty() && mount("tmpfs", rw.c_str(), "tmpfs", 0, "mode=0700") != 0) {
    return ErrnoStatus(errno, "mount the writable top on " + rw);
  }
  const auto finish = [&]() -> absl::Status {
    RETURN_IF_ERROR(MakeDirectory(upper, 0755));
    RETURN_IF_ERROR(MakeDirectory(work, 0700));
    struct stat info;
    if (stat(top_layer.c_str(), &info) != 0) return ErrnoStatus(errno, "stat " + top_layer);
    if (chown(upper.c_str(), info.st_uid, info.st_gid) != 0 ||
        chmod(upper.c_str(), info.st_mode & 07777) != 0) {
      return ErrnoStatus(errno, "give the root directory its mode");
    }
    return MountFrom(links_directory, rootfs, options);
  };
  const absl::Status status = finish();
  if (!status.ok()) UnmountOverlay(directory).IgnoreError();
  return status;
}

absl::Status UnmountOverlay(const std::string& directory) {
  RETURN_IF_ERROR(UnmountOne(directory + "/rootfs"));
  return UnmountOne(directory + "/rw");
}

}  // namespace lamina::guest
