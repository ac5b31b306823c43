// A pod's files are those of one kernel: what its containers do with them, they do together. runc shows what
// is right.
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "base/unix_socket.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

namespace fs = std::filesystem;
using std::chrono::seconds;
using ::testing::HasSubstr;

class OneKernelTest : public SharedPodTest {
 protected:
  // A fresh folder on the host.
  std::string Folder(const std::string& name) {
    const std::string path = TestNode().volumes_dir() + "/one-kernel/" + name;
    fs::create_directories(path);
    return path;
  }
  // The kubelet's folder of a volume of this pod.
  std::string PodFolder(const std::string& path) { return Folder("pods/uid/" + path); }
  void Mount(const std::string& source, const std::string& point, unsigned long flags, const char* options) {
    ASSERT_EQ(mount(source.c_str(), point.c_str(), flags == 0 ? "tmpfs" : nullptr, flags, options), 0)
        << point;
    mounted_.push_back(point);
  }
  std::string MemoryVolume(const std::string& name, const char* options) {
    const std::string path = PodFolder("volumes/kubernetes.io~empty-dir/" + name);
    Mount("tmpfs", path, 0, options);
    return path;
  }
  std::string Adopt(const ContainerSpec& spec) {
    auto id = Cri().RunContainer(pod(), spec);
    EXPECT_OK(id.status());
    if (id.ok()) started_.push_back(*id);
    return id.value_or("");
  }
  std::string Start(const std::vector<MountSpec>& mounts) {
    ContainerSpec spec = Sleeper("files-" + std::to_string(started_.size()));
    spec.mounts = mounts;
    return Adopt(spec);
  }
  void Stop(const std::string& id) {
    EXPECT_OK(Cri().StopContainer(id, 0));
    EXPECT_OK(Cri().RemoveContainer(id));
    std::erase(started_, id);
  }
  void TearDown() override {
    for (const std::string& id : std::vector(started_)) Stop(id);
    for (auto point = mounted_.rbegin(); point != mounted_.rend(); ++point)
      EXPECT_EQ(umount2(point->c_str(), MNT_DETACH), 0) << *point;
  }
  static std::string In_(const std::string& id, const std::string& command) {
    auto out = ShellIn(id, command);
    EXPECT_OK(out.status());
    return out.value_or("");
  }

  // What the containers `one` and `two` do together in the folder /data of both.
  static void ExpectOneKernel(const std::string& one, const std::string& two) {
    In_(one, "/probe listen /data/socket >/dev/null 2>&1 & while [ ! -e /data/socket ]; do :; done");
    EXPECT_EQ(In_(two, "/probe connect /data/socket; true"), "hello\n");
    In_(one,
        "touch /data/lock; (flock -x 9; touch /data/held; sleep 1000) 9>/data/lock >/dev/null 2>&1 & "
        "while [ ! -e /data/held ]; do :; done");
    EXPECT_EQ(In_(two, "flock -n /data/lock true && echo locked || echo refused"), "refused\n");
    In_(one, "mkfifo /data/fifo; (echo through the pipe >/data/fifo) >/dev/null 2>&1 &");
    EXPECT_EQ(In_(two, "timeout 10 cat /data/fifo"), "through the pipe\n");
    EXPECT_EQ(In_(one, "stat -c %i /data/lock"), In_(two, "stat -c %i /data/lock"));
  }

 private:
  std::vector<std::string> started_, mounted_;
};

TEST_F(OneKernelTest, ContainersMeetInAHostPath) {
  const std::string dir = Folder("host-path");
  ExpectOneKernel(Start({{"/data", dir}}), Start({{"/data", dir}}));
}

TEST_F(OneKernelTest, ContainersMeetInAnEmptyDir) {
  const std::string dir = PodFolder("volumes/kubernetes.io~empty-dir/disk");
  ExpectOneKernel(Start({{"/data", dir}}), Start({{"/data", dir}}));
}

TEST_F(OneKernelTest, ContainersMeetInAMemoryVolume) {
  const std::string dir = MemoryVolume("memory", "size=8m,mode=0777");
  ExpectOneKernel(Start({{"/data", dir}}), Start({{"/data", dir}}));
}

TEST_F(OneKernelTest, OneMountsWhatLiesInTheOthersFolder) {
  const std::string dir = Folder("outer");
  fs::create_directories(dir + "/inner");
  const std::string outer = Start({{"/outer", dir}}), inner = Start({{"/data", dir + "/inner"}});
  In_(outer, "mount | grep -q /outer; ln -s /outer/inner /data");
  ExpectOneKernel(outer, inner);
}

TEST_F(OneKernelTest, AReaderAndAWriterMeetToo) {
  const std::string dir = Folder("reader");
  const std::string reader = Start({{"/data", dir, true}}), writer = Start({{"/data", dir}});
  In_(writer,
      "echo x >/data/file; /probe listen /data/socket >/dev/null 2>&1 & "
      "while [ ! -e /data/socket ]; do :; done");
  EXPECT_EQ(In_(reader, "/probe connect /data/socket; /probe write /data/file y; true"), "hello\nEROFS\n");
  EXPECT_EQ(In_(reader, "stat -c %i /data/file"), In_(writer, "stat -c %i /data/file"));
}

TEST_F(OneKernelTest, AMemoryVolumeIsAsLargeAsItsLimitWhereverItIsMounted) {
  const std::string dir = MemoryVolume("shm", "size=128m,mode=0777");
  const std::string id = Start({{"/dev/shm", dir}, {"/also", dir}});
  EXPECT_EQ(In_(id, "df -m /dev/shm | awk 'NR == 2 {print $2}'"), "128\n");
  EXPECT_EQ(In_(id, "echo here >/dev/shm/x; cat /also/x; stat -c %a /also"), "here\n777\n");
  EXPECT_THAT(In_(id, "dd if=/dev/zero of=/also/big bs=1M count=200 2>&1 || true"),
              HasSubstr("No space left on device"));
  In_(id, "rm /also/big");
  // Another container of the pod still has the pod's own.
  EXPECT_EQ(In_(container(), "ls /dev/shm | grep -c '^x$'; true"), "0\n");
}

TEST_F(OneKernelTest, AMemoryVolumeLivesAsLongAsThePod) {
  const std::string dir = MemoryVolume("lasting", "size=8m,mode=0777,uid=1000,gid=2000");
  const std::string first = Start({{"/data", dir}});
  EXPECT_EQ(In_(first, "stat -c '%u %g' /data; echo kept >/data/x"), "1000 2000\n");
  Stop(first);
  EXPECT_EQ(In_(Start({{"/data", dir}}), "cat /data/x"), "kept\n");
}

// The kubelet makes the folder in the volume and binds it elsewhere.
TEST_F(OneKernelTest, ASubPathIsAFolderOfItsVolume) {
  const std::string memory = MemoryVolume("cache", "size=8m,mode=0777"),
                    disk = PodFolder("volumes/kubernetes.io~empty-dir/disk");
  for (const auto& [name, volume] : {std::pair{"cache", memory}, std::pair{"disk", disk}}) {
    fs::create_directories(volume + "/a/b");
    const std::string point = PodFolder(std::string("volume-subpaths/") + name + "/main/0");
    Mount(volume + "/a/b", point, MS_BIND, nullptr);
    const std::string id = Start({{"/whole", volume}, {"/part", point}});
    EXPECT_EQ(In_(id, "echo here >/part/x; cat /whole/a/b/x"), "here\n") << name;
    EXPECT_EQ(In_(Start({{"/part", point}}), "cat /part/x"), "here\n") << name;
  }
}

TEST_F(OneKernelTest, ADestinationBehindADanglingLinkIsMade) {
  ASSERT_OK(NeedImage(kOddImage));
  const std::string dir = Folder("dangling");
  std::ofstream(dir + "/x") << "here\n";
  ContainerSpec spec = Sleeper("dangling");
  spec.image = kOddImage;
  spec.mounts = {{"/odd/dangling", dir}};
  const std::string id = Adopt(spec);
  EXPECT_EQ(In_(id, "cat /odd/dangling/x '/odd/nowhere/at all/x'"), "here\nhere\n");
}

TEST_F(OneKernelTest, ReadOnlyLeavesWhatIsMountedBelowWritable) {
  const std::string dir = Folder("nested");
  fs::create_directories(dir + "/below");
  Mount("tmpfs", dir + "/below", 0, "mode=0777");
  const std::string id = Start({{"/data", dir, true}});
  EXPECT_EQ(In_(id, "/probe write /data/x y; /probe write /data/below/x y; true"), "EROFS\nok\n");
  EXPECT_TRUE(fs::exists(dir + "/below/x"));
}

TEST_F(OneKernelTest, AHundredMountsInOneContainer) {
  std::vector<MountSpec> mounts;
  for (int i = 0; i < 100; ++i) {
    const std::string name = std::to_string(i), dir = Folder("many/" + name);
    std::ofstream(dir + "/x") << name << "\n";
    mounts.push_back({"/many/" + name, dir, i % 2 == 0});
  }
  const std::string id = Start(mounts);
  EXPECT_EQ(In_(id, "cat /many/*/x | sort -n | tail -1; ls /many | wc -l"), "99\n100\n");
  EXPECT_EQ(In_(id, "/probe write /many/0/y z; /probe write /many/1/y z; true"), "EROFS\nok\n");
}

TEST_F(OneKernelTest, VolumesOverTheImagesOwnFolders) {
  const std::string etc = Folder("etc"), tmp = PodFolder("volumes/kubernetes.io~empty-dir/tmp"),
                    shm = MemoryVolume("over-shm", "size=4m,mode=1777");
  std::ofstream(etc + "/passwd") << "root:x:0:0::/:/bin/sh\nguest:x:1000:1000::/:/bin/sh\n";
  const std::string id = Start({{"/etc", etc}, {"/tmp", tmp}, {"/dev/shm", shm}});
  // What the runtime mounts in /etc besides lies in the volume.
  EXPECT_EQ(In_(id,
                "grep -c guest /etc/passwd; test -s /etc/resolv.conf -a -s /etc/hosts && echo both; echo x "
                ">/tmp/y; cat /tmp/y"),
            "1\nboth\nx\n");
}

// Somebody deletes a folder that a pod has mounted: what is open goes on, nothing hangs, the others don't
// care.
TEST_F(OneKernelTest, AVolumeRemovedUnderThePod) {
  const std::string gone = Folder("gone"), stays = Folder("stays");
  std::ofstream(gone + "/x") << "open\n";
  const std::string id = Start({{"/gone", gone}, {"/stays", stays}});
  In_(id,
      "(exec 5</gone/x; echo $$ >/stays/pid; while [ ! -e /stays/go ]; do :; done; cat <&5 >/stays/read) "
      ">/dev/null 2>&1 & while [ ! -s /stays/pid ]; do :; done");
  fs::remove_all(gone);
  In_(id, "touch /stays/go; i=0; while [ ! -s /stays/read ] && [ $i -lt 100000 ]; do i=$((i+1)); done");
  EXPECT_EQ(In_(id, "cat /stays/read"), "open\n");
  EXPECT_EQ(In_(id, "/probe write /gone/new y; true"), "ENOENT\n");
  EXPECT_EQ(In_(id, "echo y >/stays/y; cat /stays/y"), "y\n");
}

// A socket of the node: only what its configuration names.
TEST_F(OneKernelTest, ASocketOfTheHostAnswersWhereTheNodeAllowsIt) {
  const std::string allowed = TestNode().volumes_dir() + "/sockets/one.sock",
                    other = Folder("sockets") + "/two.sock";
  fs::create_directories(fs::path(allowed).parent_path());
  const auto listener = ListenUnix(allowed), forbidden = ListenUnix(other);
  ASSERT_OK(listener);
  ASSERT_OK(forbidden);
  ASSERT_EQ(chmod(allowed.c_str(), 0666), 0);
  if (IsLamina()) {
    ContainerSpec refused = Sleeper("refused");
    refused.mounts = {{"/app.sock", other}};
    const auto id = Cri().RunContainer(pod(), refused);
    EXPECT_THAT(Message(id.status()), ::testing::AllOf(HasSubstr(other), HasSubstr("volumes.sockets")));
  }
  ContainerSpec spec = Sleeper("asks");
  spec.mounts = {{"/app.sock", allowed}};
  spec.user = spec.group = 1000;
  const std::string id = Adopt(spec);
  std::thread serves([&] {
    for (int i = 0; i < 3; ++i) {
      const UniqueFd peer(accept(listener->get(), nullptr, nullptr));
      [[maybe_unused]] const ssize_t n = write(peer.get(), "hello\n", 6);
    }
  });
  EXPECT_EQ(In_(id, "for i in 1 2 3; do /probe connect /app.sock; done; true"), "hello\nhello\nhello\n");
  // Who hangs up before he was heard must not keep the test.
  for (int i = 0; i < 3; ++i) ConnectUnix(allowed).status().IgnoreError();
  serves.join();
}

}  // namespace
}  // namespace lamina::e2e
