// Volumes: the kubelet's folders and files on the host, seen and written from the container.
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/e2e/kit/leftovers.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

namespace fs = std::filesystem;
using std::chrono::seconds;
using ::testing::HasSubstr;

void Put(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::trunc) << text; }

class VolumeTest : public SharedPodTest {
 protected:
  // A fresh folder on the host.
  std::string Folder(const std::string& name) {
    const std::string path = TestNode().volumes_dir() + "/" + name;
    fs::create_directories(path);
    return path;
  }
  // A container with these mounts, removed at the end of the test.
  std::string Start(const std::vector<MountSpec>& mounts) {
    ContainerSpec spec = Sleeper("volumes-" + std::to_string(started_.size()));
    spec.mounts = mounts;
    return Adopt(spec);
  }
  std::string Adopt(const ContainerSpec& spec) {
    auto id = Cri().RunContainer(pod(), spec);
    EXPECT_OK(id.status());
    if (id.ok()) started_.push_back(*id);
    return id.ok() ? *id : "";
  }
  void TearDown() override {
    for (const std::string& id : started_) {
      EXPECT_OK(Cri().StopContainer(id, 0));
      EXPECT_OK(Cri().RemoveContainer(id));
    }
  }
  std::string In_(const std::string& id, const std::string& command) {
    auto out = ShellIn(id, command);
    EXPECT_OK(out.status());
    return out.value_or("");
  }
  // The guest may keep attributes for a moment.
  absl::Status Soon(const std::string& id, const std::string& command, const std::string& expected) {
    return Eventually(In(seconds(10)), [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::string out, ShellIn(id, command));
      return out == expected ? absl::OkStatus() : absl::InternalError("have \"" + out + "\"");
    });
  }

 private:
  std::vector<std::string> started_;
};

TEST_F(VolumeTest, AFolderIsSharedBothWays) {
  const std::string dir = Folder("both");
  Put(dir + "/from-host", "one");
  const std::string id = Start({{"/data", dir}});
  EXPECT_EQ(In_(id, "cat /data/from-host"), "one");
  In_(id,
      "echo two >/data/from-pod; mkdir -p /data/a/b; echo deep >/data/a/b/c; chmod 640 /data/from-pod; chown "
      "12:34 /data/from-pod");
  EXPECT_EQ(ReadText(dir + "/from-pod"), "two\n");
  EXPECT_EQ(ReadText(dir + "/a/b/c"), "deep\n");
  struct stat st {};
  ASSERT_EQ(stat((dir + "/from-pod").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0640U);
  EXPECT_EQ(st.st_uid, 12U);
  EXPECT_EQ(st.st_gid, 34U);
  Put(dir + "/later", "new file");
  EXPECT_OK(Soon(id, "cat /data/later || true", "new file"));
  Put(dir + "/from-host", "rewritten");
  EXPECT_OK(Soon(id, "cat /data/from-host", "rewritten"));
  In_(id, "rm -r /data/a /data/from-pod");
  EXPECT_FALSE(fs::exists(dir + "/a"));
}

TEST_F(VolumeTest, MuchDataSurvivesTheRoundTrip) {
  const std::string dir = Folder("bulk");
  const std::string id = Start({{"/data", dir}});
  const std::string sum = In_(id, "head -c 8000000 /dev/urandom >/data/noise; sync; sha256sum </data/noise");
  EXPECT_EQ(sum.substr(0, 64), Sha256(ReadText(dir + "/noise")));
}

TEST_F(VolumeTest, ReadOnlyIsReadOnly) {
  const std::string dir = Folder("read-only");
  Put(dir + "/file", "kept");
  const std::string id = Start({{"/data", dir, true}});
  EXPECT_EQ(In_(id, "cat /data/file"), "kept");
  EXPECT_EQ(In_(id,
                "/probe write /data/file x; /probe write /data/new x; rm /data/file 2>/dev/null || echo "
                "kept; true"),
            "EROFS\nEROFS\nkept\n");
  // Not even a privileged look from inside changes it: the host's side is read-only as well.
  EXPECT_EQ(ReadText(dir + "/file"), "kept");
}

TEST_F(VolumeTest, SingleFilesCanBeMounted) {
  const std::string dir = Folder("files");
  Put(dir + "/config", "a = 1\n");
  Put(dir + "/writable", "old");
  const std::string id =
      Start({{"/etc/app/config", dir + "/config", true}, {"/writable", dir + "/writable"}});
  EXPECT_EQ(In_(id, "cat /etc/app/config"), "a = 1\n");
  EXPECT_EQ(In_(id, "/probe write /etc/app/config x; /probe write /writable new; true"), "EROFS\nok\n");
  EXPECT_EQ(ReadText(dir + "/writable"), "new");
  EXPECT_EQ(ReadText(dir + "/config"), "a = 1\n");
}

TEST_F(VolumeTest, ASecretsUpdateArrivesAtOnceOrNotAtAll) {
  // As the kubelet's atomic writer does: files are links through ..data, which is swapped by rename.
  const std::string dir = Folder("secret");
  const auto publish = [&](const std::string& version) {
    fs::create_directories(dir + "/..v" + version);
    Put(dir + "/..v" + version + "/user", "user-" + version);
    Put(dir + "/..v" + version + "/password", "password-" + version);
    fs::create_symlink("..v" + version, dir + "/..data_tmp");
    fs::rename(dir + "/..data_tmp", dir + "/..data");
  };
  publish("1");
  fs::create_symlink("..data/user", dir + "/user");
  fs::create_symlink("..data/password", dir + "/password");
  const std::string id = Start({{"/secret", dir, true}});
  EXPECT_EQ(In_(id, "cat /secret/user /secret/password"), "user-1password-1");
  publish("2");
  fs::remove_all(dir + "/..v1");
  EXPECT_OK(Soon(id, "cat /secret/user /secret/password 2>/dev/null || true", "user-2password-2"));
}

TEST_F(VolumeTest, MemoryIsSharedBetweenThePodsContainers) {
  const std::string one = Start({}), two = Start({});
  In_(one, "echo shared >/dev/shm/x");
  EXPECT_EQ(In_(two, "cat /dev/shm/x; rm /dev/shm/x"), "shared\n");
  EXPECT_THAT(In_(one, "mount | grep ' /dev/shm '"), HasSubstr("type tmpfs"));
}

TEST_F(VolumeTest, TheSameFolderInTwoContainersAndTwoModes) {
  const std::string dir = Folder("twice");
  const std::string writer = Start({{"/w", dir}}), reader = Start({{"/r", dir, true}});
  In_(writer, "echo hi >/w/x");
  EXPECT_OK(Soon(reader, "cat /r/x 2>/dev/null || true", "hi\n"));
  EXPECT_EQ(In_(reader, "/probe write /r/x y; true"), "EROFS\n");
}

// fsGroup: the kubelet gives the volume to a group, in which the container's process is besides its own.
TEST_F(VolumeTest, AProcessOfTheVolumesGroupWritesIt) {
  const std::string dir = Folder("group");
  ASSERT_EQ(chown(dir.c_str(), 0, 3000), 0);
  ASSERT_EQ(chmod(dir.c_str(), 02770), 0);
  const auto start = [&](const std::string& name, std::vector<int64_t> groups) {
    ContainerSpec spec = Sleeper(name);
    spec.mounts = {{"/data", dir}};
    spec.user = spec.group = 1000;
    spec.supplemental_groups = std::move(groups);
    return Adopt(spec);
  };
  const std::string member = start("member", {3000}), stranger = start("stranger", {3001});
  EXPECT_EQ(In_(member,
                "cd /data && echo x >file && mkdir folder && echo y >folder/inner && chmod 4770 file && "
                "stat -c '%n %u %g %a' file folder folder/inner"),
            "file 1000 3000 4770\nfolder 1000 3000 2755\nfolder/inner 1000 3000 644\n");
  EXPECT_EQ(In_(stranger, "/probe write /data/other x; ls /data 2>/dev/null || echo refused"),
            "EACCES\nrefused\n");
  struct stat st {};
  ASSERT_EQ(stat((dir + "/folder/inner").c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 1000U);
  EXPECT_EQ(st.st_gid, 3000U);
}

TEST_F(VolumeTest, FoldersMountedBelowAVolumeAreSeen) {
  const std::string dir = Folder("nested");
  fs::create_directories(dir + "/inner");
  const std::string other = Folder("nested-other");
  Put(other + "/x", "inner");
  ASSERT_EQ(system(fmt::format("mount --bind {} {}/inner", other, dir).c_str()), 0);
  const std::string id = Start({{"/data", dir}});
  EXPECT_EQ(In_(id, "cat /data/inner/x"), "inner");
  EXPECT_OK(Cri().StopContainer(id, 0));
  EXPECT_EQ(system(fmt::format("umount {}/inner", dir).c_str()), 0);
}

TEST_F(VolumeTest, AHostilePathStaysInside) {
  const std::string dir = Folder("hostile");
  const std::string id = Start({{"/data", dir}});
  // A link made by the guest leads to the guest's own files, never the host's.
  In_(id,
      "echo guest-file >/tmp/target; ln -s /tmp/target /data/link; ln -s ../../../../../../etc/shadow "
      "/data/up");
  EXPECT_EQ(In_(id, "cat /data/link; cat /data/up | wc -l"), "guest-file\n1\n");
  const std::string again = Start({{"/data", dir}});
  EXPECT_THAT(In_(again, "cat /data/link 2>&1 || true"), HasSubstr("No such file"));
}

// With several of malloc's arenas virtiofsd makes a call that its seccomp filter punishes with death. Here
// two would be enough.
TEST_F(VolumeTest, VirtiofsdSurvivesItsThreads) {
  LAMINA_ONLY();
  const std::string program = TestNode().volumes_dir() + "/virtiofsd";
  Put(program, "#!/bin/sh\nGLIBC_TUNABLES=glibc.malloc.arena_test=1 exec /usr/lib/qemu/virtiofsd \"$@\"\n");
  fs::permissions(program, fs::perms::owner_all);
  ASSERT_OK(TestNode().Reconfigure({{"hypervisor.virtiofsd", '"' + program + '"'}}));
  PodSpec pod;
  pod.less_confined = true;  // a script has no libraries that could be put into a root of its own
  const auto threaded = ScopedPod::Run(pod);
  ASSERT_OK(TestNode().Reconfigure({{"hypervisor.virtiofsd", "\"/usr/lib/qemu/virtiofsd\""}}));
  ASSERT_OK(threaded.status());
  ContainerSpec container = Sleeper("threads");
  container.mounts = {{"/data", Folder("threads")}};
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(threaded->id(), container));
  EXPECT_EQ(In_(id,
                "for i in 1 2 3 4 5 6 7 8; do (for j in 1 2 3 4 5 6 7 8; do echo $i >/data/$i.$j; "
                "cat /data/$i.$j; done) >/dev/null & done; wait; ls /data | wc -l"),
            "64\n");
}

TEST_F(VolumeTest, AMissingSourceIsAClearError) {
  ContainerSpec spec = Sleeper("no-source");
  spec.mounts = {{"/data", TestNode().volumes_dir() + "/missing/never"}};
  // containerd makes a missing host folder itself; a file in its way it cannot.
  Put(TestNode().volumes_dir() + "/missing", "a file");
  const auto id = Cri().CreateContainer(pod(), spec);
  EXPECT_NOT_OK(id);
  EXPECT_THAT(Message(id.status()), HasSubstr("missing/never"));
}

}  // namespace
}  // namespace lamina::e2e
