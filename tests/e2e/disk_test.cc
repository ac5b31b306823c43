// What lies on disks of the VM's: containers' roots, emptyDirs, block volumes. runc shows what is right.
#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/subprocess.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "tests/e2e/kit/leftovers.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

namespace fs = std::filesystem;
using std::chrono::seconds;
using ::testing::HasSubstr;

// What the file takes on the host's disk.
uint64_t Allocated(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 ? static_cast<uint64_t>(info.st_blocks) * 512 : 0;
}

// Images of containers' roots in this node's snapshots.
std::vector<std::string> RootImages() {
  return FindNamed(TestNode().dir() + "/containerd", {"lamina-root.img"}, {}, 8);
}

// A file as a block device of the host.
class Loop {
 public:
  Loop(const std::string& file, uint64_t bytes) : file_(file) {
    std::ofstream(file).flush();
    fs::resize_file(file, bytes);
    const UniqueFd control(open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    const UniqueFd backing(open(file.c_str(), O_RDWR | O_CLOEXEC));
    if (!control || !backing) return;
    // Another may take the same number in between.
    for (int tries = 0; tries < 100 && !device_; ++tries) {
      path_ = fmt::format("/dev/loop{}", ioctl(control.get(), LOOP_CTL_GET_FREE));
      device_.reset(open(path_.c_str(), O_RDWR | O_CLOEXEC));
      loop_config config{};
      config.fd = static_cast<uint32_t>(backing.get());
      config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
      if (device_ && ioctl(device_.get(), LOOP_CONFIGURE, &config) != 0) device_.reset();
    }
  }
  bool made() const { return static_cast<bool>(device_); }
  const std::string& path() const { return path_; }
  void Grow(uint64_t bytes) {
    fs::resize_file(file_, bytes);
    ASSERT_EQ(ioctl(device_.get(), LOOP_SET_CAPACITY, 0), 0);
  }
  std::string Read(size_t bytes, off_t offset) const {
    std::string text(bytes, '\0');
    const UniqueFd fd(open(file_.c_str(), O_RDONLY | O_CLOEXEC));
    EXPECT_EQ(pread(fd.get(), text.data(), bytes, offset), static_cast<ssize_t>(bytes));
    return text;
  }

 private:
  const std::string file_;
  std::string path_;
  UniqueFd device_;
};

absl::StatusOr<ScopedPod> RunPod(const std::string& name) {
  PodSpec spec;
  spec.name = name;
  return ScopedPod::Run(spec);
}

class DiskTest : public SharedPodTest {
 protected:
  // The kubelet's folder of an emptyDir of a pod.
  std::string EmptyDir(const std::string& name) {
    const std::string path =
        TestNode().volumes_dir() + "/disks/pods/uid/volumes/kubernetes.io~empty-dir/" + name;
    fs::create_directories(path);
    EXPECT_EQ(chmod(path.c_str(), 0777), 0);
    return path;
  }
  std::string Adopt(const ContainerSpec& spec, const std::string& in = "") {
    auto id = Cri().RunContainer(in.empty() ? pod() : in, spec);
    EXPECT_OK(id.status());
    if (id.ok()) started_.push_back(*id);
    return id.value_or("");
  }
  std::string Start(const std::vector<MountSpec>& mounts, const std::string& in = "") {
    ContainerSpec spec = Sleeper(fmt::format("disk-{}", ++names_));
    spec.mounts = mounts;
    return Adopt(spec, in);
  }
  void Stop(const std::string& id) {
    EXPECT_OK(Cri().StopContainer(id, 0));
    EXPECT_OK(Cri().RemoveContainer(id));
    std::erase(started_, id);
  }
  void TearDown() override {
    for (const std::string& id : std::vector(started_)) Stop(id);
  }
  static std::string In_(const std::string& id, const std::string& command) {
    auto out = ShellIn(id, command);
    EXPECT_OK(out.status());
    return out.value_or("");
  }

 private:
  std::vector<std::string> started_;
  int names_ = 0;
};

TEST_F(DiskTest, ARootTakesMoreThanTheContainersMemory) {
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, RunPod("small"));
  ContainerSpec spec = Sleeper();
  spec.resources.memory = static_cast<int64_t>(64 * kMiB);
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), spec));
  EXPECT_EQ(In_(id, "dd if=/dev/zero of=/big bs=1M count=150 conv=fsync 2>/dev/null && stat -c %s /big"),
            "157286400\n");
  EXPECT_OK(Cri().StopContainer(id, 0));
  EXPECT_EQ(Cri().Status(id)->reason, "Error") << "killed by the test, and by nobody before";
}

TEST_F(DiskTest, TheNodeCountsWhatIsWrittenToARootAndWhatIsDeletedAgain) {
  const std::string id = Start({});
  In_(id, "dd if=/dev/urandom of=/data bs=1M count=30 conv=fsync 2>/dev/null");
  const auto counted = [&](auto fits) {
    return Eventually(In(seconds(20)), [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const ContainerUsage usage, Cri().Usage(id));
      return fits(usage.writable_layer)
                 ? absl::OkStatus()
                 : absl::InternalError(fmt::format("{} bytes are counted", usage.writable_layer));
    });
  };
  EXPECT_OK(counted([](uint64_t bytes) { return bytes >= 30 * kMiB && bytes < 40 * kMiB; }));
  In_(id, "rm /data; sync");
  EXPECT_OK(counted([](uint64_t bytes) { return bytes < 5 * kMiB; }));
}

TEST_F(DiskTest, ARootIsAFileSystemLikeAnyOther) {
  const std::string id = Start({});
  EXPECT_EQ(In_(id, "touch /file; /probe direct /file; /probe attribute /file"), "ok\nok\n");
  EXPECT_EQ(
      In_(id, "cp /probe /suid; chmod 4755 /suid; su -s /bin/sh nobody -c '/suid ids' | cut -d' ' -f1-2"),
      "uid=65534 euid=0\n");
  EXPECT_EQ(In_(id,
                "mkfifo /fifo; ln /file /hard; stat -c %h /file; mknod /node c 1 3 && echo x >/node; ls "
                "/lost+found "
                "2>/dev/null; true"),
            "2\n");
}

TEST_F(DiskTest, ARootHasTheConfiguredSizeAndTheNodesFreeSpaceAtMost) {
  LAMINA_ONLY();
  struct statvfs host {};
  ASSERT_EQ(statvfs(TestNode().dir().c_str(), &host), 0);
  const uint64_t free = host.f_bavail * host.f_frsize, wanted = std::min(free, 20 * kGiB);
  const uint64_t shown = std::stoull(In_(Start({}), "df -k / | awk 'NR == 2 {print $2}'")) * kKiB;
  EXPECT_LE(shown, wanted);
  EXPECT_GE(shown, wanted / 100 * 95);
}

TEST_F(DiskTest, ARootInMemoryIfTheNodeSaysSo) {
  LAMINA_ONLY();
  ASSERT_OK(TestNode().Reconfigure({{"volumes.root", "\"memory\""}, {"volumes.empty_dir", "\"shared\""}}));
  auto started = RunPod("memory");
  ASSERT_OK(TestNode().Reconfigure({{"volumes.root", "\"disk\""}, {"volumes.empty_dir", "\"disk\""}}));
  ASSERT_OK(started.status());
  const ScopedPod pod = *std::move(started);
  const size_t before = RootImages().size();
  const std::string folder = EmptyDir("shared");
  ContainerSpec spec = Sleeper();
  spec.mounts = {{"/data", folder}};
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), spec));
  EXPECT_EQ(RootImages().size(), before);
  EXPECT_EQ(In_(id, "echo x >/file; cat /file; echo seen >/data/file"), "x\n");
  EXPECT_EQ(ReadText(folder + "/file"), "seen\n");
}

TEST_F(DiskTest, ARootThatIsOnlyReadHasNoDisk) {
  const size_t before = RootImages().size();
  ContainerSpec spec = Sleeper("reader");
  spec.readonly_root = true;
  spec.mounts = {{"/made/for/it", EmptyDir("reader")}};
  const std::string id = Adopt(spec);
  EXPECT_EQ(RootImages().size(), before);
  EXPECT_EQ(In_(id, "/probe write /file x; echo y >/made/for/it/file; cat /made/for/it/file; true"),
            "EROFS\ny\n");
}

TEST_F(DiskTest, AnEmptyDirIsThePodsAndTheNodeSeesHowLargeItIs) {
  const std::string folder = EmptyDir("shared");
  const std::string one = Start({{"/data", folder}});
  EXPECT_EQ(
      In_(one,
          "ls -A /data; stat -c %a /data; touch /data/f; /probe direct /data/f; /probe attribute /data/f"),
      IsLamina() ? "777\nok\nok\n" : In_(one, "echo 777; echo ok; echo ok"));
  In_(one, "dd if=/dev/urandom of=/data/big bs=1M count=20 conv=fsync 2>/dev/null; echo kept >/data/small");
  const auto du = [&]() -> uint64_t {
    uint64_t bytes = 0;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) bytes += Allocated(entry.path());
    return bytes;
  };
  EXPECT_GE(du(), 20 * kMiB);
  Stop(one);
  const std::string two = Start({{"/other", folder}});
  EXPECT_EQ(In_(two, "cat /other/small; rm /other/big; sync"), "kept\n");
  EXPECT_OK(Eventually(In(seconds(20)), [&] {
    return du() < 5 * kMiB ? absl::OkStatus() : absl::InternalError(fmt::format("{} bytes are left", du()));
  }));
}

// The kubelet makes the next sandbox of the same pod, and what was in its emptyDirs is there.
TEST_F(DiskTest, AnEmptyDirOutlivesItsVm) {
  const std::string folder = EmptyDir("outlives");
  for (const bool first : {true, false}) {
    ASSERT_OK_AND_ASSIGN(const ScopedPod pod, RunPod("outlives"));
    ContainerSpec spec = Sleeper();
    spec.mounts = {{"/data", folder}};
    ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), spec));
    if (!first) {
      EXPECT_EQ(In_(id, "cat /data/file"), "kept\n");
      continue;
    }
    In_(id, "echo kept >/data/file; sync");
    if (!IsLamina()) continue;
    // It ends without a farewell.
    for (const Process& process : FindProcesses(TestNode().run_dir(), {})) {
      if (process.command.find("qemu-system") != std::string::npos &&
          process.command.find(pod.id().substr(0, 12)) != std::string::npos) {
        EXPECT_EQ(kill(process.pid, SIGKILL), 0);
      }
    }
    EXPECT_OK(Cri().WaitForExit(id, In(seconds(20))));
  }
}

TEST_F(DiskTest, AFullDiskOfTheNodeIsOneContainersError) {
  LAMINA_ONLY();
  const std::string disk = TestNode().volumes_dir() + "/full.img", point = TestNode().volumes_dir() + "/full";
  Loop loop(disk, 256 * kMiB);
  if (!loop.made()) GTEST_SKIP() << "no loop device can be had here";
  ASSERT_OK(RunChecked({"mke2fs", "-q", "-t", "ext4", loop.path()}, seconds(30)));
  const std::string folder = point + "/pods/uid/volumes/kubernetes.io~empty-dir/data";
  fs::create_directories(point);
  ASSERT_EQ(mount(loop.path().c_str(), point.c_str(), "ext4", 0, nullptr), 0);
  fs::create_directories(folder);
  {
    ASSERT_OK_AND_ASSIGN(const ScopedPod pod, RunPod("full"));
    ContainerSpec spec = Sleeper();
    spec.mounts = {{"/data", folder}};
    ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), spec));
    ASSERT_OK_AND_ASSIGN(const std::string neighbour, Cri().RunContainer(pod.id(), Sleeper("neighbour")));
    // All that was free when it was made; then others take most of it.
    EXPECT_OK(RunChecked({"fallocate", "-l", "170M", point + "/others"}, seconds(30)));
    EXPECT_OK(Eventually(In(seconds(20)), [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::string left, ShellIn(id, "df -m /data | awk 'NR == 2 {print $4}'"));
      return std::stoi(left) < 80 ? absl::OkStatus() : absl::InternalError(left + " MiB are left");
    }));
    EXPECT_THAT(In_(id, "dd if=/dev/urandom of=/data/big bs=1M count=150 2>&1 || true"),
                HasSubstr("No space left on device"));
    EXPECT_EQ(In_(id, "rm /data/big; echo small >/data/small; sync; cat /data/small"), "small\n");
    // Taken so fast that nobody could be told: what was written before cannot be kept, and a sync says so.
    const auto free = fs::space(point).available;
    EXPECT_OK(RunChecked({"fallocate", "-l", std::to_string(free - kMiB), point + "/more"}, seconds(30)));
    const std::string said =
        In_(id, "dd if=/dev/urandom of=/data/big bs=1M count=30 conv=fsync 2>&1 || true");
    EXPECT_THAT(said, ::testing::AnyOf(HasSubstr("No space left"), HasSubstr("I/O error"),
                                       HasSubstr("Input/output error"), HasSubstr("Read-only file system")));
    EXPECT_EQ(In_(neighbour, "echo fine >/file; sync; cat /file"), "fine\n");
    EXPECT_EQ(In_(id, "echo fine >/file; cat /file"), "fine\n") << "its root is elsewhere";
  }
  EXPECT_EQ(umount2(point.c_str(), MNT_DETACH), 0);
}

TEST_F(DiskTest, ABlockVolumeIsReadWrittenAndGrows) {
  Loop loop(TestNode().volumes_dir() + "/block.img", 16 * kMiB);
  if (!loop.made()) GTEST_SKIP() << "no loop device can be had here";
  ContainerSpec spec = Sleeper("block");
  spec.devices = {loop.path()};
  const std::string id = Adopt(spec);
  EXPECT_EQ(
      In_(id, fmt::format("blockdev --getsize64 {0}; printf written | dd of={0} bs=1M seek=1 conv=fsync "
                          "2>/dev/null; /probe direct {0}",
                          loop.path())),
      "16777216\nok\n");
  EXPECT_EQ(loop.Read(7, kMiB), "written");
  EXPECT_EQ(loop.Read(3, 0), "ddd");
  loop.Grow(32 * kMiB);
  EXPECT_OK(Eventually(In(seconds(20)), [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string size, ShellIn(id, "blockdev --getsize64 " + loop.path()));
    return size == "33554432\n" ? absl::OkStatus() : absl::InternalError(size);
  }));
  // Another container of the pod has the same one.
  spec.name = "block-too";
  const std::string other = Adopt(spec);
  EXPECT_EQ(In_(other, fmt::format("dd if={} bs=1 count=3 2>/dev/null", loop.path())), "ddd");
}

TEST_F(DiskTest, ABlockVolumeThatIsOnlyReadCannotBeWritten) {
  Loop loop(TestNode().volumes_dir() + "/read-only.img", 4 * kMiB);
  if (!loop.made()) GTEST_SKIP() << "no loop device can be had here";
  ContainerSpec spec = Sleeper("block-reader");
  spec.devices = {loop.path()};
  spec.device_access = "r";
  const std::string id = Adopt(spec);
  EXPECT_EQ(In_(id, fmt::format("dd if={} bs=4k count=1 2>/dev/null | wc -c", loop.path())), "4096\n");
  EXPECT_THAT(In_(id, fmt::format("echo x | dd of={} conv=notrunc 2>&1 || true", loop.path())),
              ::testing::AnyOf(HasSubstr("Operation not permitted"), HasSubstr("Permission denied"),
                               HasSubstr("Read-only")));
  spec.name = "missing";
  spec.devices = {"/dev/no-such-device"};
  EXPECT_THAT(Message(Cri().CreateContainer(pod(), spec).status()), HasSubstr("no-such-device"));
}

TEST_F(DiskTest, ThirtyContainersLeaveNoDisk) {
  const size_t before = RootImages().size();
  for (int i = 0; i < 30; ++i) {
    const std::string id = Start({});
    EXPECT_EQ(In_(id, "echo x >/file; cat /file"), "x\n") << i;
    Stop(id);
  }
  EXPECT_EQ(RootImages().size(), before);
  for (const int pid : TestNode().PodProcesses()) {
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(fmt::format("/proc/{}/fd", pid), error)) {
      const std::string target = fs::read_symlink(entry.path(), error).string();
      EXPECT_FALSE(target.find("lamina-root.img") != std::string::npos && target.ends_with("(deleted)"))
          << pid << " has " << target;
    }
  }
}

TEST_F(DiskTest, APodGoesOnWithoutTheFilesOfItsDisks) {
  LAMINA_ONLY();
  const std::string folder = EmptyDir("removed");
  const std::string id = Start({{"/data", folder}});
  In_(id, "echo one >/data/file; echo two >/file");
  for (const std::string& image : RootImages()) EXPECT_TRUE(fs::remove(image)) << image;
  EXPECT_TRUE(fs::remove(folder + "/lamina-volume.img"));
  EXPECT_EQ(In_(id,
                "sync; cat /data/file /file; dd if=/dev/zero of=/big bs=1M count=10 conv=fsync 2>/dev/null; "
                "echo $?"),
            "one\ntwo\n0\n");
  // The next one of the pod still has the volume.
  EXPECT_EQ(In_(Start({{"/data", folder}}), "cat /data/file"), "one\n");
}

}  // namespace
}  // namespace lamina::e2e
