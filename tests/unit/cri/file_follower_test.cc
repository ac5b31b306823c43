#include "cri/file_follower.h"

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "tests/testing/no_threads.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using testing::HasStatus;
using First = FileFollower::First;

constexpr FileFollower::Options kQuick{.settle = milliseconds(5),
                                       .unsettled = milliseconds(40),
                                       .between = milliseconds(10),
                                       .retry = milliseconds(20),
                                       .retry_most = milliseconds(100)};

// What a volume's pushes saw. Thread-safe.
class Pushes {
 public:
  explicit Pushes(std::function<std::string()> look = [] { return std::string(); })
      : look_(std::move(look)) {}

  FileFollower::Push push() {
    return [this] {
      const std::string seen = look_();
      MutexLock lock(mutex_);
      seen_.push_back(seen);
      changed_.NotifyAll();
      // Not shared: TSan does not see how the library counts who has a status.
      return absl::Status(error_.code(), error_.message());
    };
  }
  int count() {
    MutexLock lock(mutex_);
    return static_cast<int>(seen_.size());
  }
  void Fail(bool fail) { FailWith(fail ? absl::UnavailableError("injected") : absl::OkStatus()); }
  void FailWith(const absl::Status& error) {
    MutexLock lock(mutex_);
    error_ = error;
  }
  // One of them saw `text`, or there were `count` of them, within ten seconds.
  bool Saw(const std::string& text) {
    return Wait([&]() REQUIRES(mutex_) { return std::count(seen_.begin(), seen_.end(), text) > 0; });
  }
  bool Reach(int count) {
    return Wait([&]() REQUIRES(mutex_) { return static_cast<int>(seen_.size()) >= count; });
  }

 private:
  template <typename Condition>
  bool Wait(Condition condition) {
    const auto deadline = steady_clock::now() + seconds(10);
    MutexLock lock(mutex_);
    while (!condition()) {
      if (!changed_.WaitUntil(mutex_, deadline) && steady_clock::now() >= deadline) return condition();
    }
    return true;
  }
  const std::function<std::string()> look_;
  Mutex mutex_;
  CondVar changed_;
  std::vector<std::string> seen_ GUARDED_BY(mutex_);
  absl::Status error_ GUARDED_BY(mutex_);
};

std::string ReadAll(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}
void Put(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::trunc) << text; }

class FileFollowerTest : public ::testing::Test {
 protected:
  void SetUp() override { fs::create_directories(volume_); }
  void Publish(const std::string& version) const {
    fs::create_directories(volume_ + "/..v" + version);
    Put(volume_ + "/..v" + version + "/key", version);
    fs::create_symlink("..v" + version, volume_ + "/..data_tmp");
    fs::rename(volume_ + "/..data_tmp", volume_ + "/..data");
  }

  testing::TempDir dir_;
  const std::string volume_ = dir_ / "volume";
};

TEST_F(FileFollowerTest, EachSwapIsPushed) {
  Publish("1");
  Pushes pushes([&] { return ReadAll(volume_ + "/..data/key"); });
  FileFollower follower;
  ASSERT_OK(follower.Follow("v", volume_, pushes.push(), First::kNow));
  EXPECT_EQ(pushes.count(), 1) << "at once";
  for (int version = 2; version < 5; ++version) {
    Publish(std::to_string(version));
    EXPECT_TRUE(pushes.Saw(std::to_string(version)));
  }
  EXPECT_EQ(follower.Followed(), std::vector<std::string>{"v"});
}

TEST_F(FileFollowerTest, PlainChangesOfEachKindArePushed) {
  fs::create_directories(volume_ + "/a/b");
  const auto look = [&] {
    std::string words;
    std::error_code gone;
    for (const auto& entry : fs::recursive_directory_iterator(volume_, gone)) {
      struct stat info {};
      if (lstat(entry.path().c_str(), &info) != 0) continue;
      words += entry.path().filename().string() + (S_ISREG(info.st_mode) ? ReadAll(entry.path()) : "") +
               (S_ISREG(info.st_mode) && (info.st_mode & 0111) != 0 ? "*" : "") + " ";
    }
    return words;
  };
  const auto seen = [&](Pushes& pushes) { return pushes.Saw(look()); };
  Pushes pushes(look);
  FileFollower follower(kQuick);
  ASSERT_OK(follower.Follow("v", volume_, pushes.push(), First::kNow));
  Put(volume_ + "/a/b/file", "new");
  EXPECT_TRUE(seen(pushes)) << "created below";
  Put(volume_ + "/a/b/file", "changed");
  EXPECT_TRUE(seen(pushes)) << "written";
  ASSERT_EQ(chmod((volume_ + "/a/b/file").c_str(), 0755), 0);
  EXPECT_TRUE(seen(pushes)) << "mode";
  fs::rename(volume_ + "/a/b/file", volume_ + "/a/moved");
  EXPECT_TRUE(seen(pushes)) << "moved";
  fs::create_directories(volume_ + "/later/deeper");
  EXPECT_TRUE(seen(pushes));
  Put(volume_ + "/later/deeper/file", "x");
  EXPECT_TRUE(seen(pushes)) << "in a folder that was not there at first";
  fs::remove_all(volume_ + "/a");
  EXPECT_TRUE(seen(pushes)) << "removed";
  // A writer that does not close.
  std::ofstream open(volume_ + "/log");
  open << "line" << std::flush;
  EXPECT_TRUE(seen(pushes)) << "written and still open";
}

TEST_F(FileFollowerTest, AFileIsFollowedInPlaceAndByRename) {
  const std::string hosts = volume_ + "/etc-hosts";
  Put(hosts, "one");
  Pushes pushes([&] { return ReadAll(hosts); });
  FileFollower follower(kQuick);
  ASSERT_OK(follower.Follow("hosts", hosts, pushes.push(), First::kNow));
  Put(hosts, "two, in place");
  EXPECT_TRUE(pushes.Saw("two, in place"));
  Put(volume_ + "/tmp", "three, renamed");
  fs::rename(volume_ + "/tmp", hosts);
  EXPECT_TRUE(pushes.Saw("three, renamed"));
  Put(hosts, "four, in place of the new one");
  EXPECT_TRUE(pushes.Saw("four, in place of the new one"));
  fs::remove(hosts);
  Put(hosts, "five, after it was gone");
  EXPECT_TRUE(pushes.Saw("five, after it was gone"));
}

TEST_F(FileFollowerTest, AFilesNeighboursAreNobodys) {
  Put(volume_ + "/hosts", "1");
  Put(volume_ + "/resolv.conf", "1");
  Pushes hosts([&] { return ReadAll(volume_ + "/hosts"); });
  Pushes resolver([&] { return ReadAll(volume_ + "/resolv.conf"); });
  FileFollower follower(kQuick);
  ASSERT_OK(follower.Follow("hosts", volume_ + "/hosts", hosts.push(), First::kNow));
  ASSERT_OK(follower.Follow("resolver", volume_ + "/resolv.conf", resolver.push(), First::kNow));
  Put(volume_ + "/other", "x");
  Put(volume_ + "/resolv.conf", "2");
  EXPECT_TRUE(resolver.Saw("2"));
  EXPECT_EQ(hosts.count(), 1);
  // One goes, the other is still followed in the same folder.
  follower.Forget("resolver");
  Put(volume_ + "/hosts", "2");
  EXPECT_TRUE(hosts.Saw("2"));
}

TEST_F(FileFollowerTest, ManyChangesAreFewPushes) {
  Put(volume_ + "/f", "0");
  Pushes pushes;
  FileFollower::Options options;
  options.between = milliseconds(100);
  FileFollower follower(options);
  ASSERT_OK(follower.Follow("v", volume_, pushes.push(), First::kNow));
  std::atomic<bool> over{false};
  std::thread writer([&] {
    for (int i = 0; !over; ++i) Put(volume_ + "/f", std::to_string(i));
  });
  const auto start = steady_clock::now();
  EXPECT_TRUE(pushes.Reach(6));
  const auto took = steady_clock::now() - start;
  over = true;
  writer.join();
  EXPECT_GE(took, milliseconds(450)) << "five more pushes, at least 100 ms from one to the next";
}

TEST_F(FileFollowerTest, AFailedPushIsTriedAgain) {
  Put(volume_ + "/f", "1");
  Pushes pushes([&] { return ReadAll(volume_ + "/f"); });
  FileFollower follower(kQuick);
  ASSERT_OK(follower.Follow("v", volume_, pushes.push(), First::kNow));
  pushes.Fail(true);
  Put(volume_ + "/f", "2");
  EXPECT_TRUE(pushes.Reach(5)) << "without a further change";
  pushes.Fail(false);
  const int failed = pushes.count();
  EXPECT_TRUE(pushes.Reach(failed + 1));
}

TEST_F(FileFollowerTest, AFirstPushThatFailsLeavesNothing) {
  Pushes pushes;
  pushes.Fail(true);
  FileFollower follower(kQuick);
  EXPECT_THAT(follower.Follow("v", volume_, pushes.push(), First::kNow),
              HasStatus(StatusCode::kUnavailable, "injected"));
  EXPECT_TRUE(follower.Followed().empty());
  EXPECT_THAT(follower.Follow("v", dir_ / "none", pushes.push(), First::kNow),
              HasStatus(StatusCode::kNotFound, "none"));
  EXPECT_EQ(pushes.count(), 1);
  pushes.Fail(false);
  ASSERT_OK(follower.Follow("v", volume_, pushes.push(), First::kNow));
  EXPECT_THAT(follower.Follow("v", volume_, pushes.push(), First::kNow),
              HasStatus(StatusCode::kAlreadyExists, "v"));
}

TEST_F(FileFollowerTest, SoonIsOnTheFollowersOwnThreadAndMayFailAtFirst) {
  Pushes pushes;
  pushes.Fail(true);
  FileFollower follower(kQuick);
  ASSERT_OK(follower.Follow("v", volume_, pushes.push(), First::kSoon));
  EXPECT_TRUE(pushes.Reach(2));
  pushes.Fail(false);
  const int failed = pushes.count();
  EXPECT_TRUE(pushes.Reach(failed + 1));
}

TEST_F(FileFollowerTest, NothingComesAfterForget) {
  Pushes pushes([&] { return ReadAll(volume_ + "/f"); }), other;
  const std::string second = dir_ / "second";
  fs::create_directories(second);
  FileFollower follower(kQuick);
  ASSERT_OK(follower.Follow("v", volume_, pushes.push(), First::kNow));
  ASSERT_OK(follower.Follow("other", second, other.push(), First::kNow));
  follower.Forget("v");
  follower.Forget("v");
  const int before = pushes.count();
  Put(volume_ + "/f", "unseen");
  Put(second + "/f", "x");
  EXPECT_TRUE(other.Reach(2));
  Put(second + "/f", "y");
  EXPECT_TRUE(other.Reach(3)) << "the thread has been round";
  EXPECT_EQ(pushes.count(), before);
  EXPECT_EQ(follower.Followed(), std::vector<std::string>{"other"});
}

TEST_F(FileFollowerTest, TheEndOfTheFolderIsTheEndOfTheFollowing) {
  Pushes pushes, other;
  const std::string second = dir_ / "second";
  fs::create_directories(second);
  FileFollower follower(kQuick);
  ASSERT_OK(follower.Follow("v", volume_, pushes.push(), First::kNow));
  ASSERT_OK(follower.Follow("other", second, other.push(), First::kNow));
  fs::remove_all(volume_);
  const auto deadline = steady_clock::now() + seconds(10);
  for (int round = 2; follower.Followed().size() > 1 && steady_clock::now() < deadline; ++round) {
    Put(second + "/f", std::to_string(round));
    EXPECT_TRUE(other.Reach(round));
  }
  EXPECT_EQ(follower.Followed(), std::vector<std::string>{"other"});
  follower.Forget("v");
}

TEST_F(FileFollowerTest, OfAGuestThatIsGoneNothingMoreIsAsked) {
  Pushes pushes, other;
  const std::string second = dir_ / "second";
  fs::create_directories(second);
  FileFollower follower(kQuick);
  ASSERT_OK(follower.Follow("v", volume_, pushes.push(), First::kNow));
  ASSERT_OK(follower.Follow("other", second, other.push(), First::kNow));
  pushes.FailWith(absl::CancelledError("the pod's VM is being stopped"));
  Put(volume_ + "/f", "1");
  EXPECT_TRUE(pushes.Reach(2));
  Put(volume_ + "/f", "2");
  Put(second + "/f", "1");
  EXPECT_TRUE(other.Reach(2));
  Put(second + "/f", "2");
  EXPECT_TRUE(other.Reach(3));
  EXPECT_EQ(pushes.count(), 2);
  EXPECT_EQ(follower.Followed(), std::vector<std::string>{"other"});
}

TEST_F(FileFollowerTest, AnUnmountIsNotHinderedAndEndsTheFollowing) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  ASSERT_EQ(mount("none", volume_.c_str(), "tmpfs", 0, nullptr), 0);
  Pushes pushes, other;
  const std::string second = dir_ / "second";
  fs::create_directories(second);
  FileFollower follower(kQuick);
  ASSERT_OK(follower.Follow("v", volume_, pushes.push(), First::kNow));
  ASSERT_OK(follower.Follow("other", second, other.push(), First::kNow));
  ASSERT_EQ(umount(volume_.c_str()), 0) << "as the kubelet does, and not detached";
  const auto deadline = steady_clock::now() + seconds(10);
  for (int round = 2; follower.Followed().size() > 1 && steady_clock::now() < deadline; ++round) {
    Put(second + "/f", std::to_string(round));
    EXPECT_TRUE(other.Reach(round));
  }
  EXPECT_EQ(follower.Followed(), std::vector<std::string>{"other"});
}

TEST_F(FileFollowerTest, AnOverflowOfTheQueueLosesNothing) {
  std::ifstream limit("/proc/sys/fs/inotify/max_queued_events");
  int events = 0;
  limit >> events;
  if (events <= 0 || events > 100'000)
    GTEST_SKIP() << "a queue of " << events << " events is too long to fill";
  Pushes pushes([&] { return ReadAll(volume_ + "/last"); });
  Mutex gate;
  bool open = false;
  CondVar changed;
  const std::string second = dir_ / "second";
  fs::create_directories(second);
  FileFollower follower(kQuick);
  ASSERT_OK(follower.Follow("v", volume_, pushes.push(), First::kNow));
  // The thread is held in a push of another volume while the queue runs over.
  std::atomic<int> held{0};
  ASSERT_OK(follower.Follow(
      "held", second,
      [&]() -> absl::Status {
        if (++held != 2) return absl::OkStatus();
        MutexLock lock(gate);
        changed.NotifyAll();
        while (!open) changed.Wait(gate);
        return absl::OkStatus();
      },
      First::kNow));
  Put(second + "/f", "x");
  {
    MutexLock lock(gate);
    while (held < 2) changed.Wait(gate);
  }
  for (int i = 0; i <= events / 2; ++i) {
    const std::string name = volume_ + "/f" + std::to_string(i % 2);
    Put(name, "");
    fs::remove(name);
  }
  Put(volume_ + "/last", "content");
  {
    MutexLock lock(gate);
    open = true;
    changed.NotifyAll();
  }
  EXPECT_TRUE(pushes.Saw("content"));
}

TEST_F(FileFollowerTest, WithoutAThreadNothingIsFollowedAndLaterItIs) {
  Pushes pushes;
  FileFollower follower(kQuick);
  {
    const testing::NoThreads none;
    EXPECT_THAT(follower.Follow("v", volume_, pushes.push(), First::kNow),
                HasStatus(StatusCode::kResourceExhausted, "start a thread"));
  }
  EXPECT_TRUE(follower.Followed().empty());
  ASSERT_OK(follower.Follow("v", volume_, pushes.push(), First::kNow));
  Put(volume_ + "/f", "x");
  EXPECT_TRUE(pushes.Reach(2));
}

// On a node of more pods than the kernel has inotify descriptors for.
TEST_F(FileFollowerTest, WithoutInotifyItIsLookedAt) {
  Publish("1");
  Put(dir_ / "hosts", "one");
  Pushes pushes([&] { return ReadAll(volume_ + "/..data/key"); }),
      hosts([&] { return ReadAll(dir_ / "hosts"); });
  FileFollower::Options options = kQuick;
  options.watch = false;
  options.look = milliseconds(20);
  FileFollower follower(options);
  ASSERT_OK(follower.Follow("v", volume_, pushes.push(), First::kNow));
  ASSERT_OK(follower.Follow("hosts", dir_ / "hosts", hosts.push(), First::kNow));
  for (const std::string version : {"2", "3"}) {
    Publish(version);
    EXPECT_TRUE(pushes.Saw(version));
  }
  Put(dir_ / "hosts", "two, in place");
  EXPECT_TRUE(hosts.Saw("two, in place"));
  Put(dir_ / "tmp", "three, renamed");
  fs::rename(dir_ / "tmp", dir_ / "hosts");
  EXPECT_TRUE(hosts.Saw("three, renamed"));
  EXPECT_EQ(pushes.count(), 3) << "what did not change is not pushed";
  fs::remove_all(volume_);
  follower.Forget("v");
}

TEST_F(FileFollowerTest, TooManyFoldersAreRefused) {
  for (int i = 0; i < 300; ++i) fs::create_directories(volume_ + "/d" + std::to_string(i));
  Pushes pushes;
  FileFollower follower(kQuick);
  EXPECT_THAT(follower.Follow("v", volume_, pushes.push(), First::kNow),
              HasStatus(StatusCode::kResourceExhausted, volume_));
  EXPECT_EQ(pushes.count(), 0);
}

}  // namespace
}  // namespace lamina::cri
