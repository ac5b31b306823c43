#include "vmm/vm_users.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <set>

#include "base/status.h"

namespace lamina::vmm {
namespace {

// The users of `range` that processes run as. The directory of a process is its effective user's.
absl::StatusOr<std::set<uid_t>> RunningUsers(const UserRange& range) {
  const std::unique_ptr<DIR, int (*)(DIR*)> proc(opendir("/proc"), closedir);
  if (proc == nullptr) return ErrnoStatus(errno, "list processes in /proc");
  std::set<uid_t> running;
  while (const dirent* entry = readdir(proc.get())) {
    struct stat info {};
    if (entry->d_name[0] < '1' || entry->d_name[0] > '9') continue;
    if (fstatat(dirfd(proc.get()), entry->d_name, &info, 0) != 0) continue;  // it has ended
    if (info.st_uid >= range.first && info.st_uid <= range.last) running.insert(info.st_uid);
  }
  return running;
}

}  // namespace

absl::StatusOr<VmUser> TakeVmUser(const UserRange& range, const std::string& lock_path) {
  VmUser user;
  user.claim.reset(open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!user.claim) return ErrnoStatus(errno, "open " + lock_path);
  const uint32_t count = range.last - range.first + 1;
  uint32_t start = 0;  // far from what others try at the same time
  if (getrandom(&start, sizeof start, 0) != sizeof start) return ErrnoStatus(errno, "getrandom");
  std::set<uid_t> running;
  for (uint32_t i = 0; i < count; ++i) {
    const uid_t uid = range.first + (start % count + i) % count;
    if (running.count(uid) > 0) continue;
    struct flock byte {};
    byte.l_type = F_WRLCK;
    byte.l_whence = SEEK_SET;
    byte.l_start = uid;
    byte.l_len = 1;
    if (fcntl(user.claim.get(), F_OFD_SETLK, &byte) != 0) {
      if (errno == EAGAIN || errno == EACCES) continue;
      return ErrnoStatus(errno, "lock " + lock_path);
    }
    // Looked at with the lock: who held it before may have started a process.
    ASSIGN_OR_RETURN(running, RunningUsers(range));
    if (running.count(uid) == 0) {
      user.uid = uid;
      return user;
    }
    byte.l_type = F_UNLCK;
    fcntl(user.claim.get(), F_OFD_SETLK, &byte);
  }
  return MakeStatus(absl::StatusCode::kResourceExhausted,
                    "each of the {} users of hypervisor.users ({}-{}) has a process: more are needed", count,
                    range.first, range.last);
}

}  // namespace lamina::vmm
