// What a guest that has taken its QEMU over would find: /proc shows it.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "base/file_system.h"
#include "base/private_root.h"
#include "base/process.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/units.h"
#include "base/unix_socket.h"
#include "tests/integration/vmm/machine.h"
#include "tests/testing/status_matchers.h"
#include "vmm/vm_users.h"

namespace lamina::vmm {
namespace {

namespace fs = std::filesystem;
using lamina::testing::HasStatus;
using lamina::testing::TempDir;
using std::chrono::seconds;
using ::testing::UnorderedElementsAreArray;

// "Uid" -> "0 0 0 0"
std::string StatusOf(pid_t pid, const std::string& key) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(key + ":", 0) != 0) continue;
    std::istringstream words(line.substr(key.size() + 1));
    std::string all;
    for (std::string word; words >> word;) all += (all.empty() ? "" : " ") + word;
    return all;
  }
  return "no " + key;
}

uint32_t UserOf(const Vm& vm) { return static_cast<uint32_t>(std::stoul(StatusOf(vm.pid(), "Uid"))); }

void ExpectUnprivileged(pid_t pid, const UserRange& users) {
  const auto uid = static_cast<uint32_t>(std::stoul(StatusOf(pid, "Uid")));
  EXPECT_GE(uid, users.first);
  EXPECT_LE(uid, users.last);
  EXPECT_EQ(StatusOf(pid, "Uid"), fmt::format("{0} {0} {0} {0}", uid));
  EXPECT_EQ(StatusOf(pid, "Gid"), fmt::format("{0} {0} {0} {0}", uid));
  EXPECT_EQ(StatusOf(pid, "Groups"), "");
  for (const char* set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"})
    EXPECT_EQ(StatusOf(pid, set), "0000000000000000") << set;
  EXPECT_EQ(StatusOf(pid, "NoNewPrivs"), "1");
  EXPECT_EQ(StatusOf(pid, "Seccomp"), "2");
}

std::string Namespace(const std::string& pid, const std::string& name) {
  return fs::read_symlink("/proc/" + pid + "/ns/" + name);
}

// The files among its descriptors; its own eventfds come and go with the guest's drivers.
std::vector<std::string> OpenFiles(const Vm& vm) {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator("/proc/" + std::to_string(vm.pid()) + "/fd")) {
    std::error_code gone;
    const std::string target = fs::read_symlink(entry.path(), gone);
    if (target.rfind("anon_inode:", 0) != 0 && target.rfind("socket:", 0) != 0) files.push_back(target);
  }
  std::sort(files.begin(), files.end());
  return files;
}

TEST(Confined, QemuOwnsNothingOfTheNode) {
  Machine::Options boot;
  boot.shared_dir = true;
  const mode_t ours = umask(0077);  // as laminad has it
  const auto machine = Machine::Boot(boot);
  umask(ours);
  ASSERT_OK(machine);
  const Vm& vm = (*machine)->vm();
  const std::string pid = std::to_string(vm.pid());
  ExpectUnprivileged(vm.pid(), Confined().users);
  for (const char* name : {"mnt", "pid", "ipc", "uts", "net"})
    EXPECT_NE(Namespace(pid, name), Namespace("self", name)) << name;

  // All of its root, but for what it reads of itself.
  const std::string root = "/proc/" + pid + "/root";
  std::vector<std::string> found;
  for (auto it = fs::recursive_directory_iterator(root); it != fs::recursive_directory_iterator(); ++it) {
    if (it->path() == root + "/proc")
      it.disable_recursion_pending();
    else if (!it->is_directory())
      found.push_back(it->path().string().substr(root.size()));
  }
  const VmSpec spec = TestSpec("");
  auto allowed = ProgramFiles(fs::canonical(FindProgram(spec.qemu)));
  ASSERT_OK(allowed);
  const std::vector<std::string> further = {spec.firmware,
                                            spec.kernel,
                                            spec.initramfs,
                                            "/usr/share/qemu/pvh.bin",
                                            "/usr/share/qemu/linuxboot_dma.bin",
                                            "/usr/share/qemu/kvmvapic.bin",
                                            "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so"};
  allowed->insert(allowed->end(), further.begin(), further.end());
  EXPECT_THAT(found, UnorderedElementsAreArray(*allowed));
  std::vector<std::string> processes;
  for (const auto& entry : fs::directory_iterator(root + "/proc"))
    processes.push_back(entry.path().filename());
  EXPECT_THAT(processes, UnorderedElementsAreArray({"1", "self", "thread-self"}));

  std::ifstream mounts("/proc/" + pid + "/mountinfo");
  int writable = 0;
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream words(line);
    std::string skip, place, options;
    words >> skip >> skip >> skip >> skip >> place >> options;
    if (place == "/proc" || options.rfind("ro,", 0) == 0) continue;
    ADD_FAILURE() << line;
    ++writable;
  }
  EXPECT_EQ(writable, 0);
}

TEST(Confined, LivingVmsShareNoUserAndADeadOnesIsFree) {
  const TempDir dirs[3];
  StartOptions options = Confined();
  options.users.last = options.users.first + 1;
  const auto start = [&](int i) { return Hypervisor::Qemu().Start(TestSpec(dirs[i].path()), options); };
  auto first = start(0), second = start(1);
  ASSERT_OK(first);
  ASSERT_OK(second);
  EXPECT_NE(UserOf(**first), UserOf(**second));
  EXPECT_THAT(start(2), HasStatus(absl::StatusCode::kResourceExhausted, "hypervisor.users"));
  const uint32_t user = UserOf(**first);
  ASSERT_OK((*first)->Kill(seconds(10)));
  const auto third = start(2);
  ASSERT_OK(third);
  EXPECT_EQ(UserOf(**third), user);
  EXPECT_OK((*second)->Kill(seconds(10)));
  EXPECT_OK((*third)->Kill(seconds(10)));
}

// Those who take one at the same time, before a process runs as it.
TEST(Confined, AUserThatIsBeingGivenIsNotGivenTwice) {
  const TempDir dir;
  const UserRange range{1'900'001'000, 1'900'001'007};
  std::vector<VmUser> held;
  std::set<uid_t> users;
  for (int i = 0; i < 8; ++i) {
    auto user = TakeVmUser(range, dir / "lock");
    ASSERT_OK(user);
    users.insert(user->uid);
    held.push_back(*std::move(user));
  }
  EXPECT_EQ(users.size(), 8u);
  EXPECT_THAT(TakeVmUser(range, dir / "lock"), HasStatus(absl::StatusCode::kResourceExhausted));
  held.pop_back();
  EXPECT_OK(TakeVmUser(range, dir / "lock"));
}

TEST(Confined, WithoutUsersQemuRunsAsWeDo) {
  const TempDir dir;
  const auto vm = Hypervisor::Qemu().Start(TestSpec(dir.path()), {});
  ASSERT_OK(vm);
  EXPECT_EQ(StatusOf((*vm)->pid(), "Uid"), StatusOf(getpid(), "Uid"));
  EXPECT_OK((*vm)->Kill(seconds(10)));
}

// Of the calling thread alone.
void DropFromThread(int capability) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> data{};
  ASSERT_EQ(syscall(SYS_capget, &header, data.data()), 0);
  data[0].effective &= ~(1U << capability);
  data[0].permitted &= ~(1U << capability);
  ASSERT_EQ(syscall(SYS_capset, &header, data.data()), 0);
}

TEST(Confined, WhereNamespacesCannotBeMadeItIsSaidAndTheRestHolds) {
  const TempDir dir;
  std::thread([&] {
    DropFromThread(CAP_SYS_ADMIN);
    ::testing::internal::CaptureStderr();
    const auto vm = Hypervisor::Qemu().Start(TestSpec(dir.path()), Confined());
    EXPECT_THAT(::testing::internal::GetCapturedStderr(),
                ::testing::HasSubstr("has no root and no namespaces of its own"));
    ASSERT_OK(vm);
    ExpectUnprivileged((*vm)->pid(), Confined().users);
    EXPECT_EQ(Namespace(std::to_string((*vm)->pid()), "mnt"), Namespace("self", "mnt"));
    EXPECT_OK((*vm)->Kill(seconds(10)));
  }).join();
}

TEST(Confined, WithoutNamespacesVirtiofsdHasItsCapabilitiesAlone) {
  const TempDir dir;
  fs::create_directory(dir / "shared");
  VirtiofsdOptions options;
  options.program = kVirtiofsd;
  options.shared_dir = dir / "shared";
  options.socket = dir / "fs.sock";
  options.log_path = dir / "log";
  std::thread([&] {
    DropFromThread(CAP_SYS_ADMIN);
    ::testing::internal::CaptureStderr();
    const auto virtiofsd = Hypervisor::Qemu().StartVirtiofsd(options);
    EXPECT_THAT(::testing::internal::GetCapturedStderr(),
                ::testing::HasSubstr("virtiofsd has no root and no namespaces of its own"));
    ASSERT_OK(virtiofsd);
    const auto connection = ConnectUnix(options.socket);
    ASSERT_OK(connection);
    // It gives up the last two once it has taken the connection.
    const auto deadline = std::chrono::steady_clock::now() + seconds(20);
    while (StatusOf(virtiofsd->pid, "CapPrm") != "00000000800000db" &&
           std::chrono::steady_clock::now() < deadline) {
      usleep(2000);
    }
    EXPECT_EQ(StatusOf(virtiofsd->pid, "CapPrm"), "00000000800000db");
    EXPECT_EQ(StatusOf(virtiofsd->pid, "CapEff"), "00000000800000db");
    EXPECT_EQ(StatusOf(virtiofsd->pid, "NoNewPrivs"), "1");
    EXPECT_EQ(StatusOf(virtiofsd->pid, "Seccomp"), "2");
    EXPECT_EQ(Namespace(std::to_string(virtiofsd->pid), "mnt"), Namespace("self", "mnt"));
    EXPECT_EQ(fs::read_symlink(fmt::format("/proc/{}/root", virtiofsd->pid)), options.shared_dir);
    EXPECT_OK(KillProcess(virtiofsd->pid, virtiofsd->start_time, seconds(10)));
  }).join();
}

TEST(Confined, AnImageThatQemusUserCannotReadIsNamed) {
  const TempDir dir;
  VmSpec spec = TestSpec(dir.path());
  spec.initramfs = dir / "initramfs";
  fs::copy_file(TestSpec("").initramfs, spec.initramfs);
  ASSERT_EQ(chmod(spec.initramfs.c_str(), 0600), 0);
  EXPECT_THAT(Hypervisor::Qemu().Start(spec, Confined()),
              HasStatus(absl::StatusCode::kFailedPrecondition, "initramfs has the mode 0600"));
}

// What is handed over is taken back: of a disk nothing stays, of an arena what it is mapped through.
TEST(Confined, FilesThatCameAndWentLeaveNoDescriptor) {
  const TempDir files;
  const auto image = MakeLayer(files.path(), "disk", "on a disk");
  ASSERT_OK(image);
  ASSERT_EQ(chmod(image->c_str(), 0600), 0);
  ArenaDevice arena = MakeArena(files.path(), "arena", 64 * kMiB, *image, 8 * kMiB);
  ASSERT_EQ(chmod(arena.path.c_str(), 0600), 0) << "as Lamina 0.1 made them";
  const auto machine = Machine::Boot({});
  ASSERT_OK(machine);
  Vm& vm = (*machine)->vm();
  std::vector<std::string> wanted = OpenFiles(vm);
  const auto path = vm.AttachArena(arena, arena.bytes);
  ASSERT_OK(path);
  ASSERT_OK((*machine)->MountPmem(1, *path, 8 * kMiB, FileSize(*image)));
  wanted.insert(std::upper_bound(wanted.begin(), wanted.end(), arena.path), arena.path);
  EXPECT_EQ(OpenFiles(vm), wanted);
  for (int round = 0; round < 200; ++round) {
    const uint64_t disk = *vm.scsi().Reserve(*image);
    ASSERT_OK(vm.scsi().Map(disk));
    ASSERT_NE(OpenFiles(vm), wanted) << "the disk's image is open";
    ASSERT_OK(vm.scsi().Unmap(disk));
    ASSERT_EQ(OpenFiles(vm), wanted) << "after " << round + 1 << " disks";
  }
}

}  // namespace
}  // namespace lamina::vmm
