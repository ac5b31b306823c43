// What a node meets that is broken or hostile below the pods' authors: guests that are not Lamina's, disks
// without room, sizes that cannot be. Each gets an error in time that says what and where, and leaves
// nothing.
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "base/file_system.h"
#include "base/subprocess.h"
#include "tests/e2e/kit/image.h"
#include "tests/e2e/kit/leftovers.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

namespace fs = std::filesystem;
using std::chrono::seconds;
using std::chrono::steady_clock;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string Quoted(const std::string& text) { return '"' + text + '"'; }

class BadInputTest : public ::testing::Test {
 protected:
  void SetUp() override { LAMINA_ONLY(); }
  void TearDown() override {
    if (!IsLamina()) return;
    EXPECT_THAT(TestNode().Leftovers(In(seconds(15))), IsEmpty());
  }

  // What RunPod says; it must say no within `limit`.
  std::string Refusal(const PodSpec& spec, seconds limit) {
    const auto begin = steady_clock::now();
    const auto pod = Cri().RunPod(spec);
    EXPECT_LT(steady_clock::now() - begin, limit);
    EXPECT_NOT_OK(pod);
    if (pod.ok()) {
      EXPECT_OK(Cri().RemovePod(*pod));
    }
    return Message(pod.status());
  }
};

// A guest image whose init is the stand-in.
class HostileGuestTest : public BadInputTest {
 protected:
  void SetUp() override {
    LAMINA_ONLY();
    dir_ = TestNode().volumes_dir() + "/hostile-guest";
    fs::create_directories(dir_);
    fs::create_symlink(TestNode().guest_dir() + "/vmlinux", dir_ + "/vmlinux");
    Layer files;
    files.File("stand-in", ReadText(StandInPath()), 0755);
    ASSERT_OK(ExtendInitramfs(TestNode().guest_dir() + "/initramfs.img", files, dir_ + "/initramfs.img"));
    std::ofstream sums(dir_ + "/SHA256SUMS");
    for (const char* name : {"vmlinux", "initramfs.img"})
      sums << Sha256(ReadText(dir_ + "/" + name)) << "  " << name << "\n";
  }
  void TearDown() override {
    if (!IsLamina()) return;
    fs::remove_all(dir_);
    BadInputTest::TearDown();
  }

  std::string RefusalOf(const std::string& mode, int boot_timeout, seconds limit) {
    EXPECT_OK(
        TestNode().Reconfigure({{"paths.guest_dir", Quoted(dir_)},
                                {"hypervisor.boot_timeout_seconds", std::to_string(boot_timeout)},
                                {"hypervisor.kernel_args", Quoted("rdinit=/stand-in stand_in=" + mode)}}));
    PodSpec spec;
    spec.name = "hostile-" + mode;
    const std::string message = Refusal(spec, limit);
    EXPECT_OK(TestNode().Reconfigure({{"paths.guest_dir", Quoted(TestNode().guest_dir())},
                                      {"hypervisor.boot_timeout_seconds", "60"},
                                      {"hypervisor.kernel_args", Quoted("")}}));
    return message;
  }

  std::string dir_;
};

TEST_F(HostileGuestTest, AnAgentThatNeverAnswersIsGivenUp) {
  EXPECT_THAT(RefusalOf("silent", 5, seconds(40)), AllOf(HasSubstr("boot the VM"), HasSubstr("agent")));
}

TEST_F(HostileGuestTest, AnAnswerThatNeverEndsIsGivenUp) {
  EXPECT_THAT(RefusalOf("half", 8, seconds(40)), AllOf(HasSubstr("boot the VM"), HasSubstr("agent")));
}

TEST_F(HostileGuestTest, GarbageIsNoAnswer) {
  // Long before the time to boot is over: the connection is lost with the first frame that is none.
  EXPECT_THAT(RefusalOf("garbage", 300, seconds(90)), AllOf(HasSubstr("boot the VM"), HasSubstr("agent")));
}

TEST_F(HostileGuestTest, AGuestOfAnotherVersionIsNamed) {
  EXPECT_THAT(RefusalOf("stranger", 300, seconds(90)),
              AllOf(HasSubstr("protocol 99"), HasSubstr("guest image")));
}

TEST_F(BadInputTest, AnInitramfsThatTheBuildDidNotWrite) {
  const std::string dir = TestNode().volumes_dir() + "/changed-guest";
  fs::create_directories(dir);
  for (const char* name : {"vmlinux", "SHA256SUMS"})
    fs::create_symlink(TestNode().guest_dir() + "/" + name, dir + "/" + name);
  std::string image = ReadText(TestNode().guest_dir() + "/initramfs.img");
  ASSERT_GT(image.size(), 1000U);
  image[1000] = static_cast<char>(image[1000] + 1);
  std::ofstream(dir + "/initramfs.img") << image;
  ASSERT_OK(TestNode().Reconfigure({{"paths.guest_dir", Quoted(dir)}}));
  EXPECT_THAT(Refusal({}, seconds(30)), HasSubstr(dir + "/initramfs.img is not what its build wrote"));
  ASSERT_OK(TestNode().Reconfigure({{"paths.guest_dir", Quoted(TestNode().guest_dir())}}));
}

TEST_F(BadInputTest, NoInitramfs) {
  const std::string dir = TestNode().volumes_dir() + "/half-a-guest";
  fs::create_directories(dir);
  fs::create_symlink(TestNode().guest_dir() + "/vmlinux", dir + "/vmlinux");
  ASSERT_OK(TestNode().Reconfigure({{"paths.guest_dir", Quoted(dir)}}));
  EXPECT_THAT(Refusal({}, seconds(30)), HasSubstr(dir + "/initramfs.img"));
  ASSERT_OK(TestNode().Reconfigure({{"paths.guest_dir", Quoted(TestNode().guest_dir())}}));
}

TEST_F(BadInputTest, SizesThatCannotBe) {
  PodSpec spec;
  spec.resources.cpu_quota = -7;
  spec.resources.cpu_period = 100'000;
  EXPECT_THAT(Refusal(spec, seconds(30)), AllOf(HasSubstr("sandbox-cpu-quota"), HasSubstr("-7")));
  spec.resources = {};
  spec.resources.memory = -4096;
  EXPECT_THAT(Refusal(spec, seconds(30)), AllOf(HasSubstr("sandbox-memory"), HasSubstr("-4096")));
  spec.resources.memory = int64_t{1} << 62;
  EXPECT_THAT(Refusal(spec, seconds(30)), AnyOf(HasSubstr("memory"), HasSubstr("GiB")));
  spec.resources = {};
  spec.resources.cpu_quota = int64_t{1} << 40;
  EXPECT_THAT(Refusal(spec, seconds(30)), HasSubstr("vCPUs"));
}

TEST_F(BadInputTest, AContainerWithoutAPodIsNotLaminas) {
  const absl::Status status = TestNode().Ctr(
      {"run", "--rm", "--runtime", "io.containerd.lamina.v2", kBusyboxImage, "no-pod", "true"});
  ASSERT_NOT_OK(status);
  EXPECT_THAT(Message(status), HasSubstr("io.kubernetes.cri.container-type"));
  EXPECT_THAT(FindProcesses("no-pod", {}), IsEmpty());
}

TEST_F(BadInputTest, ANetworkNamespaceThatIsGone) {
  const std::string gone = "/run/netns/" + fs::path(TestNode().dir()).filename().string() + "-gone";
  const absl::Status status =
      TestNode().Ctr({"run", "--rm", "--runtime", "io.containerd.lamina.v2", "--with-ns", "network:" + gone,
                      "--annotation", "io.kubernetes.cri.container-type=sandbox", "--annotation",
                      "io.kubernetes.cri.sandbox-id=no-network", kBusyboxImage, "no-network", "true"});
  ASSERT_NOT_OK(status);
  EXPECT_THAT(Message(status), HasSubstr(gone));
  EXPECT_THAT(FindProcesses("no-network", {}), IsEmpty());
}

// laminad's files on a small disk of their own, which is full three times in different places.
TEST_F(BadInputTest, AFullDiskUnderTheArenas) {
  const std::string disk = TestNode().volumes_dir() + "/full";
  fs::create_directories(disk);
  const auto size = [&](const char* how, int64_t kib) {
    return RunChecked(
        {"mount", "-t", "tmpfs", "-o", fmt::format("{}size={}k,mode=700", how, kib), "none", disk},
        seconds(10));
  };
  int64_t image_kib = 0;
  for (const Layer& layer : Images().Busybox().layers) {
    for (const Entry& entry : layer.entries())
      image_kib = std::max(image_kib, static_cast<int64_t>(entry.content.size() >> 10));
  }
  ASSERT_OK(TestNode().StopLaminad());
  ASSERT_OK(size("", image_kib / 2));
  ASSERT_OK(TestNode().Reconfigure({{"paths.state_dir", Quoted(disk)}}));
  ASSERT_OK(TestNode().StartLaminad());
  PodSpec spec;
  spec.name = "full";
  auto pod = Cri().RunPod(spec);
  EXPECT_OK(pod.status());
  if (pod.ok()) {
    // Less than the image is, by much and by little.
    for (const int64_t kib : {image_kib / 2, image_kib * 9 / 10}) {
      EXPECT_OK(size("remount,", kib));
      const auto begin = steady_clock::now();
      ContainerSpec container = Sleeper(fmt::format("main-{}", kib));
      const auto refused = Cri().RunContainer(*pod, container);
      EXPECT_LT(steady_clock::now() - begin, seconds(60));
      EXPECT_NOT_OK(refused) << kib << " KiB";
      EXPECT_THAT(Message(refused.status()), AllOf(HasSubstr("No space left"), HasSubstr(disk))) << kib;
      uint64_t bytes = 0;
      for (const auto& entry : fs::recursive_directory_iterator(disk)) {
        struct stat st {};
        if (lstat(entry.path().c_str(), &st) == 0 && S_ISREG(st.st_mode)) bytes += st.st_blocks * 512;
      }
      EXPECT_LT(bytes, 512U << 10) << "what the failure wrote is still there";
    }
    // With room it works, on the same pod.
    EXPECT_OK(size("remount,", image_kib * 8));
    EXPECT_OK(Cri().RunContainer(*pod, Sleeper()).status());
    EXPECT_OK(Cri().RemovePod(*pod));
  }
  ASSERT_OK(TestNode().StopLaminad());
  EXPECT_OK(RunChecked({"umount", disk}, seconds(10)));
  ASSERT_OK(TestNode().Reconfigure({{"paths.state_dir", Quoted(TestNode().state_dir())}}));
  ASSERT_OK(TestNode().StartLaminad());
}

// Not even the state of the sandbox fits.
TEST_F(BadInputTest, ADiskWithoutRoomForTheState) {
  const std::string disk = TestNode().volumes_dir() + "/none";
  fs::create_directories(disk);
  ASSERT_OK(
      RunChecked({"mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=4,mode=700", "none", disk}, seconds(10)));
  ASSERT_OK(TestNode().Reconfigure({{"paths.state_dir", Quoted(disk)}}));
  EXPECT_THAT(Refusal({}, seconds(30)), AllOf(HasSubstr("No space left"), HasSubstr(disk)));
  EXPECT_THAT(ListFolder(disk + "/sandboxes"), IsEmpty());
  ASSERT_OK(TestNode().Reconfigure({{"paths.state_dir", Quoted(TestNode().state_dir())}}));
  EXPECT_OK(RunChecked({"umount", disk}, seconds(10)));
}

// The folder of containerd's snapshot that holds a layer with this file.
std::string SnapshotWith(const std::string& file) {
  for (const auto& entry : fs::recursive_directory_iterator(TestNode().dir())) {
    if (entry.path().filename() == file && entry.is_regular_file()) return entry.path().parent_path();
  }
  return "";
}

// A snapshot that is damaged below containerd, between a container's creation and its start.
TEST_F(BadInputTest, ALayersFolderThatIsGone) {
  Image image = Images().Busybox();
  image.name = "localhost/lamina/lost:1";
  image.layers.push_back(Layer().File("only-in-the-lost-layer", "nothing else is known of this"));
  ASSERT_OK(TestNode().Import(image));
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run({}));
  ContainerSpec container = Sleeper();
  container.image = image.name;
  ASSERT_OK_AND_ASSIGN(const std::string first, Cri().CreateContainer(pod.id(), container));
  const std::string folder = SnapshotWith("only-in-the-lost-layer");
  ASSERT_FALSE(folder.empty());
  fs::rename(folder, folder + ".away");
  absl::Status status = Cri().StartContainer(first);
  EXPECT_NOT_OK(status);
  EXPECT_THAT(Message(status), HasSubstr(folder));
  // A file in the folder's place is no layer either.
  container.name = "second";
  fs::rename(folder + ".away", folder);
  ASSERT_OK_AND_ASSIGN(const std::string second, Cri().CreateContainer(pod.id(), container));
  fs::rename(folder, folder + ".away");
  ASSERT_OK(FileSystem::Real().WriteAndSync(folder, "no folder and no EROFS image", 0600));
  status = Cri().StartContainer(second);
  EXPECT_NOT_OK(status);
  EXPECT_THAT(Message(status), HasSubstr(folder));
  fs::remove(folder);
  fs::rename(folder + ".away", folder);
  // The pod is as well as before.
  container.name = "third";
  ASSERT_OK_AND_ASSIGN(const std::string third, Cri().RunContainer(pod.id(), container));
  ASSERT_OK_AND_ASSIGN(const std::string read, ShellIn(third, "cat /only-in-the-lost-layer"));
  EXPECT_EQ(read, "nothing else is known of this");
}

TEST_F(BadInputTest, AnImageThatIsNotThere) {
  PodSpec spec;
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  ContainerSpec container = Sleeper();
  container.image = "localhost/lamina/none:1";
  const auto created = Cri().CreateContainer(pod.id(), container);
  ASSERT_NOT_OK(created);
  EXPECT_THAT(Message(created.status()), HasSubstr("localhost/lamina/none:1"));
}

}  // namespace
}  // namespace lamina::e2e
