#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <thread>

#include "base/file_system.h"
#include "base/process.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "tests/integration/vmm/machine.h"
#include "tests/testing/status_matchers.h"

namespace lamina::vmm {
namespace {

using lamina::testing::HasStatus;
using lamina::testing::TempDir;
using std::chrono::seconds;
using std::chrono::steady_clock;

// Processes whose command line names `dir`, or whose output goes there.
int ProcessesNaming(const std::string& dir) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const auto line = FileSystem::Real().Read(entry.path().string() + "/cmdline", 64 * kKiB);
    std::error_code gone;
    const std::string output = std::filesystem::read_symlink(entry.path() / "fd/1", gone);
    count += output.find(dir + "/") != std::string::npos ||
             (line.ok() && line->find(dir + "/") != std::string::npos);
  }
  return count;
}

TEST(Start, BootsAndTellsItsPhases) {
  const auto machine = Machine::Boot({});
  ASSERT_OK(machine);
  const agent::v1::HelloResponse& hello = (*machine)->hello();
  EXPECT_EQ(hello.protocol_version(), guest::kProtocolVersion);
  EXPECT_GT(hello.mem_total_bytes(), 100 * kMiB);
  EXPECT_LT(hello.mem_total_bytes(), 192 * kMiB);
  EXPECT_TRUE(ProcessAlive((*machine)->vm().pid(), (*machine)->vm().start_time()));
  printf("launch %.3f s, boot %.3f s (kernel %.3f s by the guest's clock)\n", (*machine)->launch_seconds(),
         (*machine)->boot_seconds(), hello.agent_started_boot_seconds());
}

// QEMU understands several nodes, and gives their policy to the boot's memory and to what can be plugged. A
// node that the machine has not is dropped beside one that it has; alone it ends QEMU.
TEST(Start, SeveralNumaNodesAreInterleaved) {
  if (!FileSystem::Real().Exists("/sys/devices/system/node/node0")) GTEST_SKIP() << "a kernel without NUMA";
  const TempDir dir;
  VmSpec spec = TestSpec(dir.path());
  spec.max_hot_memory_bytes = 256 * kMiB;
  spec.numa_nodes = {0, 1};
  const auto vm = Hypervisor::Qemu().Start(spec, Confined());
  ASSERT_OK(vm);
  int interleaved = 0;
  std::ifstream maps("/proc/" + std::to_string((*vm)->pid()) + "/numa_maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:memory-backend-memfd") == std::string::npos) continue;
    EXPECT_THAT(line, ::testing::HasSubstr(" interleave:0"));
    ++interleaved;
  }
  EXPECT_EQ(interleaved, 2);
  ASSERT_OK((*vm)->Kill(seconds(10)));
  if (FileSystem::Real().Exists("/sys/devices/system/node/node127")) return;
  const TempDir other;
  spec = TestSpec(other.path());
  spec.numa_nodes = {127};
  EXPECT_THAT(Hypervisor::Qemu().Start(spec, Confined()).status(),
              HasStatus(absl::StatusCode::kUnavailable, "cannot bind memory to host NUMA nodes"));
}

TEST(Start, QemusSocketsAndLogAreForTheOwnerOnly) {
  const TempDir dir;  // mkdtemp: 0700, as the shim makes it
  const auto vm = Hypervisor::Qemu().Start(TestSpec(dir.path()), Confined());
  ASSERT_OK(vm);
  struct stat info {};
  ASSERT_EQ(stat((dir / "qemu.log").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  for (const char* name : {"qmp.sock", "rpc.sock", "stdio.sock"}) {
    ASSERT_EQ(stat((dir / name).c_str(), &info), 0) << name;
    EXPECT_EQ(info.st_mode & 0777, 0600u) << name;
  }
  EXPECT_OK((*vm)->Kill(seconds(10)));
  EXPECT_OK((*vm)->Kill(seconds(10)));
}

TEST(Start, AFailureQuotesQemuAndLeavesNothing) {
  const TempDir dir;
  std::ofstream(dir / "kernel") << "no kernel at all";
  VmSpec spec = TestSpec(dir.path());
  spec.kernel = dir / "kernel";
  // PVH is not in it, so QEMU reads it as a bzImage and gives up.
  EXPECT_THAT(Hypervisor::Qemu().Start(spec, Confined()),
              HasStatus(absl::StatusCode::kUnavailable, "it said: qemu"));
  spec = TestSpec(dir.path());
  spec.virtiofs_socket = dir / "nobody-listens";
  EXPECT_THAT(Hypervisor::Qemu().Start(spec, Confined()),
              HasStatus(absl::StatusCode::kNotFound, "nobody-listens"));
  StartOptions options = Confined();
  options.netns_path = dir / "no-netns";
  EXPECT_THAT(Hypervisor::Qemu().Start(TestSpec(dir.path()), options),
              HasStatus(absl::StatusCode::kNotFound, "no-netns"));
  EXPECT_EQ(ProcessesNaming(dir.path()), 0);
}

TEST(Start, ASecondStartInTheSameDirectoryTakesOverOldSockets) {
  const TempDir dir;
  for (int round = 0; round < 2; ++round) {
    const auto vm = Hypervisor::Qemu().Start(TestSpec(dir.path()), Confined());
    ASSERT_OK(vm);
    EXPECT_EQ(ProcessesNaming(dir.path()), 1);
    EXPECT_OK((*vm)->Kill(seconds(10)));  // SIGKILL: the sockets stay
    EXPECT_TRUE(std::filesystem::exists(dir / "qmp.sock"));
  }
  EXPECT_EQ(ProcessesNaming(dir.path()), 0);
}

// What each of a process's descriptors is.
std::map<std::string, std::string> Descriptors(const std::string& pid) {
  std::map<std::string, std::string> all;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/" + pid + "/fd")) {
    std::error_code gone;  // the directory's own
    const std::string target = std::filesystem::read_symlink(entry.path(), gone);
    if (!gone) all[entry.path().filename()] = target;
  }
  return all;
}

TEST(Start, NeitherQemuNorVirtiofsdHoldsADescriptorOfTheShims) {
  const TempDir dir;
  // None of them is closed on exec.
  const UniqueFd file(open((dir / "file").c_str(), O_RDWR | O_CREAT, 0600));
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  const UniqueFd reader(fds[0]), writer(fds[1]);
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  const UniqueFd one(fds[0]), other(fds[1]);
  const auto before = Descriptors("self");
  std::set<std::string> ours;
  for (const auto& [number, target] : before) {
    // Those of the kernel's own kind all bear the same name.
    if (target != "/dev/null" && target.rfind("anon_inode:", 0) != 0) ours.insert(target);
  }
  ASSERT_GE(ours.size(), 4u);
  {
    std::filesystem::create_directory(dir / "shared");
    VmSpec spec = TestSpec(dir.path());
    spec.virtiofs_socket = dir / "fs.sock";
    VirtiofsdOptions options;
    options.program = kVirtiofsd;
    options.shared_dir = dir / "shared";
    options.socket = spec.virtiofs_socket;
    options.log_path = VirtiofsdLog(dir.path());
    const auto virtiofsd = Hypervisor::Qemu().StartVirtiofsd(options);
    ASSERT_OK(virtiofsd);
    const auto vm = Hypervisor::Qemu().Start(spec, Confined());
    ASSERT_OK(vm);
    const std::map<std::string, std::string> logs = {
        {std::to_string((*vm)->pid()), QemuLog(dir.path())},
        {std::to_string(virtiofsd->pid), VirtiofsdLog(dir.path())}};
    for (const auto& [pid, log] : logs) {
      auto theirs = Descriptors(pid);
      EXPECT_EQ(theirs["0"], "/dev/null");
      EXPECT_EQ(theirs["1"], log);
      EXPECT_EQ(theirs["2"], log);
      for (const auto& [number, target] : theirs)
        EXPECT_EQ(ours.count(target), 0u) << number << " is " << target;
    }
    ASSERT_OK((*vm)->Kill(seconds(10)));
    ASSERT_OK(KillProcess(virtiofsd->pid, virtiofsd->start_time, seconds(10)));
  }
  EXPECT_EQ(Descriptors("self").size(), before.size());
}

TEST(Death, IsSeenByTheWaiterAndByCallsUnderWay) {
  const auto machine = Machine::Boot({});
  ASSERT_OK(machine);
  Vm& vm = (*machine)->vm();
  const auto layer = MakeLayer((*machine)->dir(), "layer", "x");
  ASSERT_OK(layer);
  const uint64_t disk = *vm.scsi().Reserve(*layer);
  ASSERT_OK(vm.scsi().Map(disk));
  std::thread waiter([&] { vm.WaitExit(-1); });
  ASSERT_OK(vm.Alive());
  const auto killed = steady_clock::now();
  ASSERT_EQ(kill(vm.pid(), SIGKILL), 0);
  waiter.join();
  EXPECT_LT(steady_clock::now() - killed, seconds(5));
  EXPECT_THAT(vm.Alive(), HasStatus(absl::StatusCode::kUnavailable, "has ended"));
  const auto other = MakeLayer((*machine)->dir(), "other", "y");
  ASSERT_OK(other);
  EXPECT_THAT(vm.scsi().Map(*vm.scsi().Reserve(*other)), HasStatus(absl::StatusCode::kUnavailable, "gone"));
  EXPECT_THAT(vm.scsi().Unmap(disk), HasStatus(absl::StatusCode::kUnavailable, "gone"));
  EXPECT_OK(vm.Kill(seconds(1)));
}

TEST(Death, AGuestThatPowersOffEndsQemu) {
  const auto machine = Machine::Boot({});
  ASSERT_OK(machine);
  ASSERT_OK((*machine)->Call(guest::kShutdown, agent::v1::Empty()));
  (*machine)->vm().WaitExit(-1);
  EXPECT_NOT_OK((*machine)->vm().Alive());
}

// The shim may end and another take the VM's death into its hands: nothing ties QEMU to the object.
TEST(Death, TheVmOutlivesItsObject) {
  const TempDir dir;
  pid_t pid;
  uint64_t start_time;
  {
    const auto vm = Hypervisor::Qemu().Start(TestSpec(dir.path()), Confined());
    ASSERT_OK(vm);
    pid = (*vm)->pid();
    start_time = (*vm)->start_time();
  }
  EXPECT_TRUE(ProcessAlive(pid, start_time));
  EXPECT_OK(KillProcess(pid, start_time, seconds(10)));
  EXPECT_FALSE(ProcessAlive(pid, start_time));
}

}  // namespace
}  // namespace lamina::vmm
