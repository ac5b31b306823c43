#include "cri/file_follower.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/beneath.h"
#include "base/log.h"
#include "base/status.h"
#include "cri/file_tree.h"
#include "guest/protocol/contract.h"

namespace lamina::cri {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kMaxFolders = 256;  // watches are the user's, of whom every pod's shim is one process
constexpr milliseconds kListen{20};  // between two looks at the events
constexpr size_t kReadBytes = 4096,
                 kReads = 16;  // of events at one look; with more the kernel's queue overflows

// A folder and a file of the same inode cannot be: one mask for each kind, whoever watches it.
constexpr uint32_t kFolderMask = IN_MODIFY | IN_CLOSE_WRITE | IN_ATTRIB | IN_CREATE | IN_DELETE |
                                 IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE_SELF | IN_MOVE_SELF | IN_EXCL_UNLINK;
constexpr uint32_t kFileMask = IN_MODIFY | IN_CLOSE_WRITE | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF;

std::string ParentOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

struct FileFollower::Volume {
  std::string name, source;
  Push push;
  // Guarded by the follower's mutex.
  std::set<int> watches;
  int root = -1;          // the watch whose end is the volume's
  int parent = -1;        // of a file: its folder's watch
  std::string file_name;  // in the parent
  bool dirty = false, ended = false;
  bool unwatched = false;         // looked at instead
  std::optional<uint64_t> stamp;  // of the last look; the follower's thread's own once it is followed
  Time first_change, due, last_push;
  milliseconds backoff{0};
  std::string last_error;

  Mutex pushing;  // before the follower's mutex
  bool forgotten GUARDED_BY(pushing) = false;
};

FileFollower::FileFollower() : FileFollower(Options()) {}
FileFollower::FileFollower(Options options) : options_(options) {}

FileFollower::~FileFollower() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    WakeLocked();
  }
  threads_.Wait();
}

void FileFollower::WakeLocked() const {
  const uint64_t one = 1;
  if (wake_) static_cast<void>(!write(wake_.get(), &one, sizeof one));
}

absl::Status FileFollower::StartLocked() {
  if (started_) return absl::OkStatus();
  if (!inotify_ && options_.watch) inotify_ = UniqueFd(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  if (!inotify_ && options_.watch) {
    LogWarning("{}", Message(ErrnoStatus(errno,
                                         "no inotify descriptor (fs.inotify.max_user_instances); volumes are "
                                         "looked at from time to time")));
  }
  unwatched_ = !inotify_;
  if (!wake_) wake_ = UniqueFd(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!wake_) return ErrnoStatus(errno, "open an event descriptor");
  RETURN_IF_ERROR(threads_.Start(kStackBytes, [this] { Run(); }));
  started_ = true;
  return absl::OkStatus();
}

absl::StatusOr<int> FileFollower::AddWatchLocked(Volume& volume, int descriptor, const std::string& path,
                                                 uint32_t mask) {
  // By the descriptor: the name may lead elsewhere by now.
  const std::string itself = "/proc/self/fd/" + std::to_string(descriptor);
  const int watch = inotify_add_watch(inotify_.get(), itself.c_str(), mask);
  if (watch < 0) {
    volume.unwatched = errno == ENOSPC;  // fs.inotify.max_user_watches
    return ErrnoStatus(errno, "watch " + path);
  }
  volume.watches.insert(watch);
  watches_[watch].insert(&volume);
  return watch;
}

absl::Status FileFollower::WatchFoldersLocked(Volume& volume, int folder, const std::string& path,
                                              int depth) {
  if (volume.watches.size() > kMaxFolders || depth > static_cast<int>(guest::kMaxKeptDepth)) {
    return MakeStatus(absl::StatusCode::kResourceExhausted,
                      "{} has more than {} folders, or {} in each other", volume.source, kMaxFolders,
                      guest::kMaxKeptDepth);
  }
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(
      fdopendir(openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)), closedir);
  if (!stream) return ErrnoStatus(errno, "list " + path);
  while (const dirent* entry = readdir(stream.get())) {
    const std::string name = entry->d_name;
    if (name == "." || name == ".." || (entry->d_type != DT_DIR && entry->d_type != DT_UNKNOWN)) continue;
    const auto inner = OpenBeneath(folder, name, O_RDONLY | O_DIRECTORY);
    if (!inner.ok()) continue;  // no folder, or not any more; what cannot be read is the push's to tell
    const std::string inner_path = path + "/" + name;
    RETURN_IF_ERROR(AddWatchLocked(volume, inner->get(), inner_path, kFolderMask | IN_ONLYDIR).status());
    RETURN_IF_ERROR(WatchFoldersLocked(volume, inner->get(), inner_path, depth + 1));
  }
  return absl::OkStatus();
}

// Watches all that is there now and lets go of what is not there any more.
absl::Status FileFollower::WatchLocked(Volume& volume) {
  const UniqueFd source(open(volume.source.c_str(), O_PATH | O_CLOEXEC));
  if (!source) return ErrnoStatus(errno, "open " + volume.source);
  struct stat info {};
  if (fstat(source.get(), &info) != 0) return ErrnoStatus(errno, "stat " + volume.source);
  if (unwatched_ || volume.unwatched) {
    volume.unwatched = true;
    return absl::OkStatus();
  }
  const std::set<int> before = std::exchange(volume.watches, {});
  const auto watch = [&]() REQUIRES(mutex_) -> absl::Status {
    if (!S_ISDIR(info.st_mode)) {
      const std::string parent = ParentOf(volume.source);
      const UniqueFd folder(open(parent.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
      if (!folder) return ErrnoStatus(errno, "open " + parent);
      ASSIGN_OR_RETURN(volume.parent, AddWatchLocked(volume, folder.get(), parent, kFolderMask | IN_ONLYDIR));
      ASSIGN_OR_RETURN(volume.root, AddWatchLocked(volume, source.get(), volume.source, kFileMask));
      volume.file_name = volume.source.substr(volume.source.rfind('/') + 1);
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(volume.root,
                     AddWatchLocked(volume, source.get(), volume.source, kFolderMask | IN_ONLYDIR));
    // The kubelet writes into a folder once and then swaps the link to it.
    struct stat link {};
    if (fstatat(source.get(), "..data", &link, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(link.st_mode))
      return absl::OkStatus();
    const UniqueFd folder(openat(source.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!folder) return ErrnoStatus(errno, "open " + volume.source);
    return WatchFoldersLocked(volume, folder.get(), volume.source, 1);
  };
  const absl::Status status = watch();
  if (volume.unwatched) {
    LogInfo("volume {} is looked at from time to time: {}", volume.name, Message(status));
    DropWatchesLocked(volume, before);
    DropWatchesLocked(volume, volume.watches);
    volume.watches.clear();
    return absl::OkStatus();
  }
  std::set<int> gone;
  std::set_difference(before.begin(), before.end(), volume.watches.begin(), volume.watches.end(),
                      std::inserter(gone, gone.end()));
  DropWatchesLocked(volume, gone);
  return status;
}

void FileFollower::DropWatchesLocked(Volume& volume, const std::set<int>& watches) {
  for (const int watch : watches) {
    const auto found = watches_.find(watch);
    if (found == watches_.end()) continue;
    found->second.erase(&volume);
    if (!found->second.empty()) continue;
    watches_.erase(found);
    inotify_rm_watch(inotify_.get(), watch);
  }
}

absl::Status FileFollower::Follow(const std::string& name, const std::string& source, Push push,
                                  First first) {
  const auto volume = std::make_shared<Volume>();
  volume->name = name;
  volume->source = source;
  volume->push = std::move(push);
  // Held from before the volume is known: the follower's thread waits until the first push is done.
  MutexLock pushing(volume->pushing);
  {
    MutexLock lock(mutex_);
    if (volumes_.count(name) != 0)
      return MakeStatus(absl::StatusCode::kAlreadyExists, "volume {} is followed already", name);
    RETURN_IF_ERROR(StartLocked());
    // Before the first look at the content: what changes after it is heard.
    if (const absl::Status status = WatchLocked(*volume); !status.ok()) {
      DropWatchesLocked(*volume, volume->watches);
      return status;
    }
    if (volume->unwatched) {
      if (const auto stamp = FileTreeStamp(source); stamp.ok()) volume->stamp = *stamp;
      WakeLocked();
    }
    volumes_[name] = volume;
    if (first == First::kSoon) {
      volume->dirty = true;
      volume->first_change = volume->due = steady_clock::now();
      WakeLocked();
      return absl::OkStatus();
    }
  }
  const absl::Status status = volume->push();
  MutexLock lock(mutex_);
  volume->last_push = steady_clock::now();
  if (status.ok()) return absl::OkStatus();
  DropWatchesLocked(*volume, volume->watches);
  if (const auto known = volumes_.find(name); known != volumes_.end() && known->second == volume)
    volumes_.erase(known);
  volume->forgotten = true;
  return status;
}

void FileFollower::Forget(const std::string& name) {
  VolumeRef volume;
  {
    MutexLock lock(mutex_);
    const auto found = volumes_.find(name);
    if (found == volumes_.end()) return;
    volume = found->second;
    DropWatchesLocked(*volume, volume->watches);
    volumes_.erase(found);
  }
  MutexLock pushing(volume->pushing);
  volume->forgotten = true;
}

std::vector<std::string> FileFollower::Followed() const {
  MutexLock lock(mutex_);
  std::vector<std::string> names;
  for (const auto& [name, volume] : volumes_) {
    if (!volume->ended) names.push_back(name);
  }
  return names;
}

void FileFollower::ChangedLocked(Volume& volume, Time now) {
  if (volume.ended) return;
  if (!volume.dirty) volume.first_change = now;
  volume.dirty = true;
  volume.due = std::max(volume.last_push + options_.between,
                        std::min(volume.first_change + options_.unsettled, now + options_.settle));
}

void FileFollower::HeardLocked(int watch, uint32_t mask, const std::string& name, Time now) {
  if ((mask & IN_Q_OVERFLOW) != 0) {
    for (const auto& [id, volume] : volumes_) ChangedLocked(*volume, now);
    return;
  }
  const auto found = watches_.find(watch);
  if (found == watches_.end()) return;
  const std::set<Volume*> volumes = found->second;
  if ((mask & IN_IGNORED) != 0) watches_.erase(found);
  for (Volume* volume : volumes) {
    const bool lost = (mask & (IN_IGNORED | IN_UNMOUNT)) != 0;
    if (lost) volume->watches.erase(watch);
    if (watch == volume->parent) {
      // A file's folder tells only of the file. What else is in it is nobody's.
      if (lost) volume->ended = true;
      if (name != volume->file_name) continue;
    } else if (watch == volume->root && lost && volume->parent < 0) {
      volume->ended = true;
    }
    ChangedLocked(*volume, now);
    if (volume->ended) volume->dirty = false;
  }
}

void FileFollower::ReadEvents() {
  alignas(inotify_event) char buffer[kReadBytes];
  for (size_t reads = 0; reads < kReads; ++reads) {
    const ssize_t n = read(inotify_.get(), buffer, sizeof buffer);
    if (n <= 0) return;
    const Time now = steady_clock::now();
    MutexLock lock(mutex_);
    for (ssize_t at = 0; at < n;) {
      inotify_event event;
      memcpy(&event, buffer + at, sizeof event);
      const char* const name = buffer + at + sizeof event;
      HeardLocked(event.wd, event.mask, std::string(name, strnlen(name, event.len)), now);
      at += static_cast<ssize_t>(sizeof event + event.len);
    }
  }
}

void FileFollower::LookAtUnwatched() {
  std::vector<VolumeRef> volumes;
  {
    MutexLock lock(mutex_);
    for (const auto& [name, volume] : volumes_) {
      if (volume->unwatched && !volume->ended) volumes.push_back(volume);
    }
  }
  for (const VolumeRef& volume : volumes) {
    const auto stamp = FileTreeStamp(volume->source);
    MutexLock lock(mutex_);
    // What is amiss with it, the push tells; a source that is gone may come again.
    const std::optional<uint64_t> now = stamp.ok() ? std::optional(*stamp) : std::nullopt;
    if (now == volume->stamp || absl::IsNotFound(stamp.status())) continue;
    volume->stamp = now;
    ChangedLocked(*volume, steady_clock::now());
  }
}

void FileFollower::PushOne(const VolumeRef& volume) {
  absl::Status status;
  {
    MutexLock lock(mutex_);
    if (volume->ended) return;
    const auto known = volumes_.find(volume->name);
    if (known == volumes_.end() || known->second != volume) return;
    volume->dirty = false;
    volume->last_push = steady_clock::now();
    status = WatchLocked(*volume);
  }
  if (status.ok()) {
    MutexLock pushing(volume->pushing);
    if (volume->forgotten) return;
    status = volume->push();
  }
  MutexLock lock(mutex_);
  volume->last_push = steady_clock::now();
  if (volume->dirty) volume->due = std::max(volume->due, volume->last_push + options_.between);
  if (status.ok()) {
    volume->backoff = milliseconds(0);
    volume->last_error.clear();
    return;
  }
  const std::string error = Message(status);
  if (absl::IsCancelled(status)) {
    volume->ended = true;
    volume->dirty = false;
    return;
  }
  // A source that is gone goes with its pod.
  if (error != volume->last_error && !absl::IsNotFound(status))
    LogWarning("volume {} in the guest is not what {} is on the host: {}", volume->name, volume->source,
               error);
  volume->last_error = error;
  volume->backoff = std::min(options_.retry_most, std::max(options_.retry, volume->backoff * 2));
  // A change that was heard meanwhile comes sooner.
  if (volume->ended || volume->dirty) return;
  volume->dirty = true;
  volume->first_change = volume->last_push;
  volume->due = volume->last_push + volume->backoff;
}

std::optional<FileFollower::Time> FileFollower::PushDue() {
  std::vector<VolumeRef> due;
  {
    MutexLock lock(mutex_);
    const Time now = steady_clock::now();
    for (const auto& [name, volume] : volumes_) {
      if (volume->dirty && volume->due <= now) due.push_back(volume);
    }
  }
  for (const VolumeRef& volume : due) {
    {
      MutexLock lock(mutex_);
      if (stopping_) return std::nullopt;
    }
    PushOne(volume);
  }
  MutexLock lock(mutex_);
  std::optional<Time> next;
  for (const auto& [name, volume] : volumes_) {
    if (volume->dirty && (!next || volume->due < *next)) next = volume->due;
  }
  return next;
}

void FileFollower::Run() {
  Time listen = steady_clock::now();  // from when on events are read: a flood is not worth a wake-up each
  Time look = steady_clock::now();
  for (;;) {
    if (steady_clock::now() >= look) {
      LookAtUnwatched();
      look = steady_clock::now() + options_.look;
    }
    std::optional<Time> next = PushDue();
    {
      MutexLock lock(mutex_);
      if (stopping_) return;
      for (const auto& [name, volume] : volumes_) {
        if (volume->unwatched && !volume->ended && (!next || look < *next)) next = look;
      }
    }
    const Time now = steady_clock::now();
    const bool deaf = now < listen || !inotify_;
    if (now < listen && (!next || listen < *next)) next = listen;
    pollfd entries[] = {{wake_.get(), POLLIN, 0}, {inotify_.get(), POLLIN, 0}};
    int wait = -1;
    if (next) {
      const auto left = std::chrono::ceil<milliseconds>(*next - now);
      wait = static_cast<int>(std::clamp<int64_t>(left.count(), 0, 60'000));
    }
    if (poll(entries, deaf ? 1 : 2, wait) <= 0) continue;
    if ((entries[0].revents & POLLIN) != 0) {
      uint64_t count = 0;
      static_cast<void>(!read(wake_.get(), &count, sizeof count));
    }
    if (deaf || entries[1].revents == 0) continue;
    ReadEvents();
    listen = steady_clock::now() + kListen;
  }
}

}  // namespace lamina::cri
