// Follows the small volumes of a pod on the host, so that the guest's copies of them change when they do.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "cri/threads.h"

namespace lamina::cri {

// Thread-safe. One inotify descriptor and one thread for all volumes, both made with the first. Whatever a
// writer does, a volume is pushed at most once in `between`, and the thread wakes fifty times a second.
class FileFollower {
 public:
  struct Options {
    std::chrono::milliseconds settle{30};      // without a change, then it is pushed
    std::chrono::milliseconds unsettled{200};  // from the first change on, though it did not settle
    std::chrono::milliseconds between{300};    // pushes of one volume
    std::chrono::milliseconds retry{1'000};    // after a push that failed; doubled from failure to failure
    std::chrono::milliseconds retry_most{30'000};
    // From one look to the next at what cannot be watched: a node's every shim is a process of one user, to
    // whom the kernel gives so many inotify descriptors (128 where nobody set more) and watches.
    std::chrono::milliseconds look{500};
    bool watch = true;  // false: as if there were no inotify descriptor
  };
  // Sends what the volume holds now; Cancelled: to nobody any more, so it is the last one. On the follower's
  // thread, or on that of Follow; for one volume one at a time. Must not call the follower.
  using Push = std::function<absl::Status()>;
  enum class First { kNow, kSoon };

  FileFollower();
  explicit FileFollower(Options options);
  ~FileFollower();

  // From now on `push` is called when something changes in the folder `source`, or when the file `source` is
  // written or replaced. First::kNow pushes here and now; First::kSoon leaves that to the follower's thread.
  // On error nothing is followed: the push's error, AlreadyExists for the name, NotFound for the source,
  // ResourceExhausted: no thread, no descriptor, or more than 256 folders. Once the source
  // itself is deleted or unmounted, nothing more is pushed.
  absl::Status Follow(const std::string& name, const std::string& source, Push push, First first);
  // Waits for a push under way; none comes after it. Not followed: nothing.
  void Forget(const std::string& name);
  // The names that are still followed.
  std::vector<std::string> Followed() const;

 private:
  using Time = std::chrono::steady_clock::time_point;
  struct Volume;
  using VolumeRef = std::shared_ptr<Volume>;

  absl::Status StartLocked() REQUIRES(mutex_);
  absl::Status WatchLocked(Volume& volume) REQUIRES(mutex_);
  absl::StatusOr<int> AddWatchLocked(Volume& volume, int descriptor, const std::string& path, uint32_t mask)
      REQUIRES(mutex_);
  absl::Status WatchFoldersLocked(Volume& volume, int folder, const std::string& path, int depth)
      REQUIRES(mutex_);
  void DropWatchesLocked(Volume& volume, const std::set<int>& watches) REQUIRES(mutex_);
  void ChangedLocked(Volume& volume, Time now) REQUIRES(mutex_);
  void HeardLocked(int watch, uint32_t mask, const std::string& name, Time now) REQUIRES(mutex_);
  void LookAtUnwatched();
  void Run();
  void ReadEvents();
  // What is due now is pushed; the time of the next.
  std::optional<Time> PushDue();
  void PushOne(const VolumeRef& volume);
  void WakeLocked() const REQUIRES(mutex_);

  const Options options_;
  mutable Mutex mutex_;
  UniqueFd inotify_, wake_;                    // made once, before the thread that reads them
  bool unwatched_ GUARDED_BY(mutex_) = false;  // there is no inotify descriptor
  bool started_ GUARDED_BY(mutex_) = false;
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::map<std::string, VolumeRef> volumes_ GUARDED_BY(mutex_);
  std::map<int, std::set<Volume*>> watches_ GUARDED_BY(mutex_);
  Threads threads_;
};

}  // namespace lamina::cri
