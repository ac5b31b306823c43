#include "guest/agent/shared_names.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <cerrno>

#include "base/log.h"
#include "base/status.h"
#include "base/ttrpc/thread.h"

namespace lamina::guest {
namespace {

using std::chrono::steady_clock;

constexpr int kLooks = 20;
constexpr size_t kMaxLeft = 4096;
constexpr size_t kThreadStackBytes = 64 * 1024;

// What the kernel has mounted there by itself, with what is mounted in it; most names are no mount: EINVAL.
void Unmount(const std::string& path) {
  if (umount2(path.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH) != 0 && errno != EINVAL && errno != ENOENT)
    LogWarning("{}", Message(ErrnoStatus(errno, "unmount " + path)));
}

// Asks the host; a name that is gone takes its inodes, and what is mounted on it, out of this kernel.
bool IsGone(const std::string& path) {
  struct statx info;
  return statx(AT_FDCWD, path.c_str(), AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_TYPE, &info) != 0 &&
         errno == ENOENT;
}

}  // namespace

struct SharedNames::State {
  State(std::string dir, std::chrono::milliseconds step) : directory(std::move(dir)), look_step(step) {}
  const std::string directory;
  const std::chrono::milliseconds look_step;
  Mutex mutex;
  CondVar changed;
  std::map<std::string, int> users GUARDED_BY(mutex);
  std::set<std::string> mounted GUARDED_BY(mutex);  // still to be unmounted here
  std::set<std::string> left GUARDED_BY(mutex);     // the host has them, as far as is known
  int looks GUARDED_BY(mutex) = 0;                  // that the thread has still to do
  bool watching GUARDED_BY(mutex) = false;
  bool over GUARDED_BY(mutex) = false;
};

SharedNames::SharedNames(std::string directory, std::chrono::milliseconds look_step)
    : state_(std::make_shared<State>(std::move(directory), look_step)) {}

SharedNames::~SharedNames() {
  {
    MutexLock lock(state_->mutex);
    state_->over = true;
  }
  state_->changed.NotifyAll();
}

void SharedNames::Use(const std::vector<std::string>& names) {
  MutexLock lock(state_->mutex);
  for (const std::string& name : names) {
    ++state_->users[name];
    state_->mounted.erase(name);
    state_->left.erase(name);
  }
}

void SharedNames::Leave(const std::vector<std::string>& names) {
  MutexLock lock(state_->mutex);
  for (const std::string& name : names) {
    const auto user = state_->users.find(name);
    if (user == state_->users.end() || --user->second > 0) continue;
    state_->users.erase(user);
    state_->mounted.insert(name);
    if (state_->left.size() < kMaxLeft) state_->left.insert(name);
  }
  if (state_->left.empty()) return;
  state_->looks = kLooks;
  state_->changed.NotifyAll();
  if (state_->watching) return;
  const absl::Status started = ttrpc::StartThread(kThreadStackBytes, [state = state_] { Watch(state); });
  if (!started.ok()) {
    LogWarning("names that the host has shared are looked after later: {}", Message(started));
    return;
  }
  state_->watching = true;
}

void SharedNames::Watch(const std::shared_ptr<State>& state) {
  for (;;) {
    std::set<std::string> names;
    {
      MutexLock lock(state->mutex);
      names.swap(state->mounted);
    }
    // Not under the mutex: a daemon that hangs must not hold up who only says what it uses.
    for (const std::string& name : names) Unmount(state->directory + "/" + name);
    {
      MutexLock lock(state->mutex);
      const auto next = steady_clock::now() + state->look_step;
      while (!state->over && state->mounted.empty() && state->changed.WaitUntil(state->mutex, next)) {
      }
      if (!state->mounted.empty() && !state->over) continue;
      if (state->over || state->left.empty() || state->looks == 0) {
        state->watching = false;
        return;
      }
      --state->looks;
      names = state->left;
    }
    for (const std::string& name : names) {
      if (!IsGone(state->directory + "/" + name)) continue;
      MutexLock lock(state->mutex);
      state->left.erase(name);
    }
  }
}

size_t SharedNames::left() const {
  MutexLock lock(state_->mutex);
  return state_->left.size();
}

}  // namespace lamina::guest
