#include "cri/pod_volumes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "base/mutex.h"
#include "base/ttrpc/fake_caller.h"
#include "cri/volumes.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using agent::v1::Empty;
using agent::v1::MountVolumeRequest;
using testing::HasStatus;

class PodVolumesTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    own_namespace_ = geteuid() == 0 && unshare(CLONE_NEWNS) == 0 &&
                     mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
  }
  void SetUp() override {
    if (!own_namespace_) GTEST_SKIP() << "needs root";
    persist::SandboxState state;
    state.sandbox_id = "pod";
    state.runtime_dir = dir_ / "run";
    book_.Restore(state);
    ASSERT_OK(MakeSharedDir(shared_));
    agent_.Handle(guest::kMountVolume, [this](const MountVolumeRequest& request) -> absl::StatusOr<Empty> {
      mounted_.push_back(request);
      return Empty();
    });
    volumes_.Attach(agent_);
    fs::create_directories(host_ + "/a/b");
    std::ofstream(host_ + "/file") << "x";
  }
  void TearDown() override {
    EXPECT_OK(UnmountTree(shared_));
    EXPECT_OK(UnmountTree(host_));
  }
  static SpecMount Bind(const std::string& source, std::vector<std::string> options = {"rbind", "rw"}) {
    return {"/data", "bind", source, std::move(options)};
  }
  PodVolumes::Taken Take(const std::vector<SpecMount>& mounts) {
    BundleSpec spec;
    spec.mounts = mounts;
    PodVolumes::Taken taken;
    EXPECT_OK(volumes_.Take(spec, taken));
    return taken;
  }
  // A memory volume as the kubelet makes it.
  std::string MemoryVolume(const std::string& name, const char* options) {
    const std::string path = host_ + "/pods/u/volumes/kubernetes.io~empty-dir/" + name;
    fs::create_directories(path);
    EXPECT_EQ(mount("tmpfs", path.c_str(), "tmpfs", 0, options), 0);
    return path;
  }
  bool IsReadOnly(const std::string& name) const { return access((shared_ + "/" + name).c_str(), W_OK) != 0; }

  static bool own_namespace_;
  const testing::TempDir dir_;
  const std::string shared_ = dir_ / "run/shared", host_ = fs::canonical(dir_.path()).string() + "/host";
  StateBook book_{FileSystem::Real(), dir_ / "state"};
  ttrpc::FakeCaller agent_;
  std::vector<MountVolumeRequest> mounted_;
  // What the guest was told of files; also by the follower's thread, which ends with the next.
  Mutex mutex_;
  CondVar changed_;
  std::vector<agent::v1::PutFilesRequest> put_;
  std::vector<std::string> unmounted_;
  HostSockets sockets_{{}};
  PodVolumes volumes_{book_, sockets_};
};
bool PodVolumesTest::own_namespace_ = false;

TEST_F(PodVolumesTest, OneFileIsOneInodeForAllContainers) {
  const auto one = Take({Bind(host_)}), two = Take({Bind(host_)});
  EXPECT_EQ(one.sources.at(0), "/run/lamina/shared/" + one.names.at(0));
  EXPECT_EQ(two.sources, one.sources);
  // What lies in it, and what another name leads to, are the same files.
  fs::create_directory_symlink(host_, dir_ / "link");
  const auto three = Take({Bind(host_ + "/a/b"), Bind(dir_ / "link"), Bind(host_ + "/file")});
  EXPECT_EQ(three.sources.at(0), one.sources.at(0) + "/a/b");
  EXPECT_EQ(three.sources.at(1), one.sources.at(0));
  EXPECT_EQ(three.sources.at(2), one.sources.at(0) + "/file");
  EXPECT_EQ(three.names, one.names);
  ASSERT_OK(volumes_.GiveBack(one.names));
  ASSERT_OK(volumes_.GiveBack(two.names));
  EXPECT_TRUE(fs::exists(shared_ + "/" + one.names[0])) << "the third has it";
  ASSERT_OK(volumes_.GiveBack(three.names));
  EXPECT_TRUE(fs::is_empty(shared_));
  EXPECT_NE(Take({Bind(host_)}).names, one.names) << "the guest may remember the name";
}

// The kubelet's small volumes: in the guest for all containers, followed, and gone with the last of them.
class KeptVolumesTest : public PodVolumesTest {
 protected:
  void SetUp() override {
    PodVolumesTest::SetUp();
    if (IsSkipped()) return;
    fs::create_directories(pod_ + "/containers/web");
    agent_.Handle(guest::kPutFiles,
                  [this](const agent::v1::PutFilesRequest& request) -> absl::StatusOr<Empty> {
                    MutexLock lock(mutex_);
                    put_.push_back(request);
                    changed_.NotifyAll();
                    return Empty();
                  });
    agent_.Handle(guest::kUnmountVolume,
                  [this](const agent::v1::UnmountVolumeRequest& request) -> absl::StatusOr<Empty> {
                    MutexLock lock(mutex_);
                    unmounted_.push_back(request.name());
                    return Empty();
                  });
    agent_.Handle(
        guest::kReadFile,
        [](const agent::v1::ReadFileRequest& request) -> absl::StatusOr<agent::v1::ReadFileResponse> {
          agent::v1::ReadFileResponse answer;
          answer.set_content("said by " + request.volume());
          return answer;
        });
  }
  std::string ConfigMap(const std::string& name) const {
    const std::string dir = pod_ + "/volumes/kubernetes.io~configmap/" + name;
    fs::create_directories(dir);
    Publish(dir, "1");
    return dir;
  }
  static void Publish(const std::string& dir, const std::string& version) {
    fs::create_directories(dir + "/..v" + version);
    std::ofstream(dir + "/..v" + version + "/key") << version;
    fs::create_symlink("..v" + version, dir + "/..data_tmp");
    fs::rename(dir + "/..data_tmp", dir + "/..data");
  }
  // A request for this volume that has a file with this content comes, or came, within ten seconds.
  bool Heard(const std::string& volume, const std::string& content) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    MutexLock lock(mutex_);
    for (;;) {
      for (const auto& request : put_) {
        for (const auto& entry : request.entries()) {
          if (request.volume() == volume && entry.content() == content) return true;
        }
      }
      if (!changed_.WaitUntil(mutex_, deadline) && std::chrono::steady_clock::now() >= deadline) return false;
    }
  }

  const std::string pod_ = host_ + "/pods/u";
};

TEST_F(KeptVolumesTest, AConfigMapIsPutOnceFollowedAndRemovedWithItsLastUser) {
  const std::string dir = ConfigMap("config");
  const auto one = Take({Bind(dir, {"rbind", "ro"})}), two = Take({Bind(dir, {"rbind", "ro"})});
  ASSERT_EQ(one.names.size(), 1U);
  const std::string name = one.names[0];
  EXPECT_EQ(one.sources.at(0), "/run/lamina/volumes/" + name + "/data");
  EXPECT_EQ(two.sources, one.sources);
  EXPECT_EQ(agent_.Count("PutFiles"), 1);
  EXPECT_TRUE(fs::is_empty(shared_));
  Publish(dir, "2");
  EXPECT_TRUE(Heard(name, "2"));
  ASSERT_OK(volumes_.GiveBack(one.names));
  EXPECT_TRUE(unmounted_.empty());
  Publish(dir, "3");
  EXPECT_TRUE(Heard(name, "3")) << "the second has it";
  ASSERT_OK(volumes_.GiveBack(two.names));
  EXPECT_EQ(unmounted_, std::vector<std::string>{name});
  EXPECT_TRUE(volumes_.Known().empty());
  EXPECT_EQ(Take({Bind(dir)}).sources, one.sources) << "again, as it is now";
}

TEST_F(KeptVolumesTest, WhatTheGuestCannotKeepIsSharedAndSaysWhy) {
  const std::string dir = ConfigMap("odd");
  ASSERT_EQ(mkfifo((dir + "/pipe").c_str(), 0600), 0);
  const auto taken = Take({Bind(dir)});
  EXPECT_EQ(taken.sources.at(0), "/run/lamina/shared/" + taken.names.at(0));
  EXPECT_THAT(taken.notes.back(), ::testing::HasSubstr("instead: " + dir + "/pipe is neither"));
  EXPECT_EQ(agent_.Count("PutFiles"), 0);
  const std::string large = ConfigMap("large");
  std::ofstream(large + "/..v1/key") << std::string(size_t{9} << 20, 'x');
  EXPECT_THAT(Take({Bind(large)}).notes.back(), ::testing::HasSubstr("bytes"));
  const std::string refused = ConfigMap("refused");
  agent_.FailAt(static_cast<int>(agent_.calls().size()), absl::ResourceExhaustedError("no memory"));
  const auto shared = Take({Bind(refused)});
  EXPECT_THAT(shared.notes.back(), ::testing::HasSubstr("no memory"));
  ASSERT_OK(volumes_.GiveBack(shared.names));
  ASSERT_OK(volumes_.GiveBack(taken.names));
  EXPECT_TRUE(unmounted_.empty());
}

TEST_F(KeptVolumesTest, OfAGuestThatIsGoneNothingIsShared) {
  const std::string dir = ConfigMap("config");
  agent_.FailAt(static_cast<int>(agent_.calls().size()), absl::UnavailableError("the connection ended"));
  agent_.SetConnected(false);
  BundleSpec spec;
  spec.mounts = {Bind(dir)};
  PodVolumes::Taken taken;
  EXPECT_THAT(volumes_.Take(spec, taken), HasStatus(StatusCode::kUnavailable, dir));
  EXPECT_TRUE(taken.names.empty());
  EXPECT_TRUE(fs::is_empty(shared_));
}

TEST_F(KeptVolumesTest, ATerminationLogIsBroughtAndNotFollowed) {
  const std::string log = pod_ + "/containers/web/1a2b3c4d";
  std::ofstream(log) << "";
  const auto taken = Take({Bind(log)});
  ASSERT_EQ(taken.names.size(), 1U);
  std::ofstream(log) << "the host's";
  volumes_.BringLogs({"unknown", taken.names[0]});
  std::ifstream in(log);
  EXPECT_EQ((std::string{std::istreambuf_iterator<char>(in), {}}), "said by " + taken.names[0]);
  // Its file may be gone by then.
  fs::remove(log);
  volumes_.BringLogs(taken.names);
  EXPECT_FALSE(fs::exists(log));
  EXPECT_EQ(agent_.Count("PutFiles"), 1);
  ASSERT_OK(volumes_.GiveBack(taken.names));
  EXPECT_EQ(unmounted_, taken.names);
}

// The end of one container is told while the volumes of another are being made, however long that takes.
TEST_F(KeptVolumesTest, ALogIsBroughtWhileAVolumeIsBeingMade) {
  const std::string log = pod_ + "/containers/web/1a2b3c4d", dir = ConfigMap("slow");
  std::ofstream(log) << "";
  const auto taken = Take({Bind(log)});
  bool begun = false, brought = false;
  agent_.Handle(guest::kPutFiles, [&](const agent::v1::PutFilesRequest&) -> absl::StatusOr<Empty> {
    MutexLock lock(mutex_);
    begun = true;
    changed_.NotifyAll();
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!brought && std::chrono::steady_clock::now() < deadline) changed_.WaitUntil(mutex_, deadline);
    EXPECT_TRUE(brought);
    return Empty();
  });
  std::thread other([&] { EXPECT_EQ(Take({Bind(dir)}).names.size(), 1U); });
  {
    MutexLock lock(mutex_);
    while (!begun) changed_.Wait(mutex_);
  }
  volumes_.BringLogs(taken.names);
  {
    MutexLock lock(mutex_);
    brought = true;
    changed_.NotifyAll();
  }
  other.join();
  EXPECT_EQ(agent_.Count("ReadFile"), 1);
}

TEST_F(KeptVolumesTest, AnotherShimGoesOnFollowing) {
  const std::string dir = ConfigMap("config"), unused = ConfigMap("unused");
  const std::string log = pod_ + "/containers/web/1a2b3c4d";
  std::ofstream(log) << "";
  const auto taken = Take({Bind(dir)}), left = Take({Bind(unused)}), logged = Take({Bind(log)});
  persist::SandboxState state;
  state.runtime_dir = dir_ / "run";
  state.volumes = volumes_.Known();
  state.containers["one"].mounts = taken.names;
  state.containers["two"].mounts = logged.names;
  const int before = agent_.Count("PutFiles");
  Publish(dir, "2");
  EXPECT_TRUE(Heard(taken.names[0], "2"));
  {
    MutexLock lock(mutex_);
    put_.clear();
  }
  PodVolumes next(book_, sockets_);
  next.Restore(state);
  EXPECT_GE(agent_.Count("PutFiles"), before);
  next.Attach(agent_);
  EXPECT_TRUE(Heard(taken.names[0], "2")) << "what changed meanwhile comes without another change";
  Publish(dir, "3");
  EXPECT_TRUE(Heard(taken.names[0], "3"));
  EXPECT_EQ(unmounted_, left.names) << "nobody has it any more";
  next.BringLogs(logged.names);
  EXPECT_EQ(agent_.Count("ReadFile"), 1);
  ASSERT_OK(next.GiveBack(taken.names));
  ASSERT_OK(next.GiveBack(logged.names));
  EXPECT_TRUE(next.Known().empty());
}

TEST_F(PodVolumesTest, AFolderComesBeforeWhatLiesInItWhateverTheOrder) {
  const auto taken = Take({Bind(host_ + "/a/b"), Bind(host_)});
  EXPECT_EQ(taken.names.size(), 1U);
  EXPECT_EQ(taken.sources.at(0), taken.sources.at(1) + "/a/b");
}

TEST_F(PodVolumesTest, ANeighboursNameIsNoFolderOfIt) {
  fs::create_directories(host_ + "/a-long");
  const auto taken = Take({Bind(host_ + "/a"), Bind(host_ + "/a-long")});
  EXPECT_EQ(taken.names.size(), 2U);
}

TEST_F(PodVolumesTest, WhatIsMountedInBetweenIsAnother) {
  ASSERT_EQ(mount("none", (host_ + "/a").c_str(), "tmpfs", 0, nullptr), 0);
  fs::create_directories(host_ + "/a/b");
  const auto taken = Take({Bind(host_), Bind(host_ + "/a/b"), Bind(host_ + "/a")});
  EXPECT_EQ(taken.names.size(), 2U);
  EXPECT_EQ(taken.sources.at(1), taken.sources.at(2) + "/b");
}

TEST_F(PodVolumesTest, ReadOnlyUntilSomebodyWrites) {
  const auto reader = Take({Bind(host_, {"rbind", "ro"})});
  const std::string name = reader.names.at(0);
  EXPECT_TRUE(IsReadOnly(name));
  const auto writer = Take({Bind(host_)});
  EXPECT_EQ(writer.names, reader.names);
  EXPECT_FALSE(IsReadOnly(name));
  // Both in one container.
  fs::create_directories(dir_ / "other");
  const auto both = Take({Bind(dir_ / "other", {"rbind", "ro"}), Bind(dir_ / "other")});
  EXPECT_EQ(both.names.size(), 1U);
  EXPECT_FALSE(IsReadOnly(both.names.at(0)));
}

TEST_F(PodVolumesTest, PropagationMakesAVolumeOfItsOwn) {
  const auto own = Take({Bind(host_)}), follows = Take({Bind(host_, {"rbind", "rslave"})});
  EXPECT_NE(own.names, follows.names);
}

TEST_F(PodVolumesTest, MountsBelowAReadOnlyOneAreEnteredFirst) {
  ASSERT_EQ(mount("none", (host_ + "/a").c_str(), "tmpfs", 0, nullptr), 0);
  EXPECT_EQ(Take({Bind(host_)}).host_mounts, std::vector<std::string>());
  const auto taken = Take({Bind(host_, {"rbind", "ro"})});
  EXPECT_EQ(taken.host_mounts, std::vector<std::string>{taken.sources.at(0) + "/a"});
  EXPECT_EQ(Take({Bind(host_, {"rbind", "rro"})}).host_mounts, std::vector<std::string>());
}

TEST_F(PodVolumesTest, AMemoryVolumeIsTheGuestsAsLongAsThePod) {
  const std::string cache = MemoryVolume("cache", "size=8m,mode=2770,uid=5,gid=6");
  const auto one = Take({Bind(cache)});
  ASSERT_EQ(mounted_.size(), 1U);
  EXPECT_EQ(mounted_[0].memory().size_bytes(), 8U << 20);
  EXPECT_EQ(mounted_[0].root().uid(), 5U);
  EXPECT_EQ(mounted_[0].root().gid(), 6U);
  EXPECT_EQ(mounted_[0].root().mode(), 02770U);
  EXPECT_EQ(one.sources.at(0), "/run/lamina/volumes/" + mounted_[0].name());
  EXPECT_TRUE(fs::is_empty(shared_)) << "nothing of it is the host's";
  ASSERT_OK(volumes_.GiveBack(one.names));
  EXPECT_EQ(Take({Bind(cache)}).sources, one.sources)
      << "a container that comes later finds what was written";
  EXPECT_EQ(agent_.Count("MountVolume"), 1);
  EXPECT_EQ(agent_.Count("UnmountVolume"), 0);
}

TEST_F(PodVolumesTest, ASubPathIsAFolderOfTheGuestsVolume) {
  const std::string cache = MemoryVolume("cache", "size=8m"),
                    point = host_ + "/pods/u/volume-subpaths/cache/main/0";
  fs::create_directories(cache + "/x/y");
  fs::create_directories(point);
  ASSERT_EQ(chmod((cache + "/x").c_str(), 0750), 0);
  ASSERT_EQ(mount((cache + "/x/y").c_str(), point.c_str(), nullptr, MS_BIND, nullptr), 0);
  const auto taken = Take({Bind(cache), Bind(point)});
  EXPECT_EQ(taken.sources.at(1), taken.sources.at(0) + "/x/y");
  ASSERT_FALSE(mounted_.empty());
  ASSERT_EQ(mounted_[0].folders_size(), 2);
  EXPECT_EQ(mounted_[0].folders(0).path(), "x");
  EXPECT_EQ(mounted_[0].folders(0).mode(), 0750U);
  EXPECT_EQ(mounted_[0].folders(1).path(), "x/y");
  // Another folder of the same volume.
  Take({Bind(cache + "/x")});
  EXPECT_EQ(mounted_.back().name(), mounted_[0].name());
  EXPECT_EQ(mounted_.back().folders_size(), 1);
}

TEST_F(PodVolumesTest, OneWithoutABoundGetsTheKernels) {
  Take({Bind(MemoryVolume("endless", "size=0")), Bind(MemoryVolume("most", "size=60%"))});
  ASSERT_EQ(mounted_.size(), 2U);
  for (const MountVolumeRequest& request : mounted_) EXPECT_EQ(request.memory().size_bytes(), 0U);
}

TEST_F(PodVolumesTest, WhatFailsLeavesNothingAndSaysWhere) {
  BundleSpec spec;
  spec.mounts = {Bind(host_), Bind(host_ + "/none")};
  PodVolumes::Taken taken;
  EXPECT_THAT(volumes_.Take(spec, taken), HasStatus(StatusCode::kNotFound, host_ + "/none"));
  ASSERT_OK(volumes_.GiveBack(taken.names));
  EXPECT_TRUE(fs::is_empty(shared_));
  spec.mounts = {Bind(MemoryVolume("cache", "size=8m"))};
  taken = {};
  agent_.FailAt(0, absl::ResourceExhaustedError("injected"));
  EXPECT_THAT(volumes_.Take(spec, taken), HasStatus(StatusCode::kResourceExhausted, "empty-dir/cache"));
  EXPECT_TRUE(taken.names.empty());
  agent_.FailAt(-1);
  EXPECT_OK(volumes_.Take(spec, taken));
}

TEST_F(PodVolumesTest, GoesOnWhereAnotherShimStopped) {
  const std::string cache = MemoryVolume("cache", "size=8m");
  const auto taken = Take({Bind(host_), Bind(cache)});
  persist::SandboxState state = book_.Get();
  state.volumes = volumes_.Known();
  state.containers["web"].mounts = taken.names;
  // Of one that was deleted in the same moment.
  state.volumes.push_back({"v99", VolumeKindName(VolumeKind::kShared), host_, "1:2", "/gone", false, false});
  PodVolumes next(book_, sockets_);
  next.Attach(agent_);
  next.Restore(state);
  BundleSpec spec;
  spec.mounts = {Bind(host_), Bind(cache)};
  PodVolumes::Taken again;
  ASSERT_OK(next.Take(spec, again));
  EXPECT_EQ(again.sources, taken.sources);
  EXPECT_EQ(agent_.Count("MountVolume"), 1);
  EXPECT_EQ(next.Known().size(), 2U);
  ASSERT_OK(next.GiveBack(again.names));
  EXPECT_FALSE(fs::is_empty(shared_)) << "the first container has it";
  ASSERT_OK(next.GiveBack(taken.names));
  EXPECT_TRUE(fs::is_empty(shared_));
}

}  // namespace
}  // namespace lamina::cri
