// What a pod's processes on the host may do and have, as /proc and the cgroups show it.
#include "tests/e2e/kit/confinement.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "base/process_rights.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "cri/host_limits.h"
#include "persist/state_store.h"
#include "tests/e2e/kit/leftovers.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::Not;

class ConfinementTest : public ::testing::Test {
 protected:
  void SetUp() override { LAMINA_ONLY(); }

  static persist::SandboxState State(const std::string& pod) {
    const persist::StateStore store(FileSystem::Real(), TestNode().state_dir());
    auto state = store.Load(pod);
    EXPECT_OK(state.status());
    return state.value_or(persist::SandboxState());
  }
  static std::string Proc(int64_t pid, const std::string& file) {
    return ReadText(fmt::format("/proc/{}/{}", pid, file));
  }
  static std::map<std::string, std::string> StatusOf(int64_t pid) {
    std::map<std::string, std::string> status;
    for (const std::string& line : SplitLines(Proc(pid, "status"))) {
      const size_t colon = line.find(':');
      status[line.substr(0, colon)] = Trim(line.substr(colon + 1));
    }
    return status;
  }
  static void ExpectOwnNamespaces(int64_t pid) {
    for (const char* space : {"mnt", "pid", "ipc", "uts", "net"}) {
      const auto of = [&](const std::string& who) {
        return std::filesystem::read_symlink("/proc/" + who + "/ns/" + space).string();
      };
      EXPECT_NE(of(std::to_string(pid)), of("self")) << space;
    }
  }
  static std::string Cgroup(const persist::SandboxState& state, const std::vector<std::string>& names) {
    for (const std::string& dir : state.cgroup_dirs) {
      for (const std::string& name : names) {
        if (std::filesystem::exists(dir + "/" + name)) return dir + "/" + name;
      }
    }
    return "";
  }
  static std::string MemoryFile(const persist::SandboxState& state) {
    return Cgroup(state, {"memory.max", "memory.limit_in_bytes"});
  }
  static uint64_t Bytes(const std::string& file) { return std::stoull("0" + Trim(ReadText(file))); }
};

TEST_F(ConfinementTest, ProcessesOfAPodHaveNothingOfTheirParents) {
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run({}));
  const persist::SandboxState state = State(pod.id());
  EXPECT_EQ(Proc(state.vmm.pid, "environ"), std::string("PATH=/usr/sbin:/usr/bin:/sbin:/bin") + '\0');
  for (const int64_t pid : {state.vmm.pid, state.virtiofsd.pid}) {
    std::istringstream limits(Proc(pid, "limits"));
    std::string core;
    while (std::getline(limits, core) && core.find("core file size") == std::string::npos) {
    }
    EXPECT_THAT(core, HasSubstr(" 0                    0 ")) << core;
    // The kit's containerd may not go below its own, which is the tests', and says so in the sandbox's spec.
    EXPECT_EQ(Proc(pid, "oom_score_adj"), ReadText("/proc/self/oom_score_adj"));
  }
}

TEST_F(ConfinementTest, VirtiofsdOwnsTheVolumesAndNothingElse) {
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run({}));
  ContainerSpec container = Sleeper();
  const std::string folder = TestNode().volumes_dir() + "/owned";
  std::filesystem::create_directories(folder);
  container.mounts = {{"/data", folder}};
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), container));
  const persist::SandboxState state = State(pod.id());
  const int64_t pid = state.virtiofsd.pid;
  auto status = StatusOf(pid);
  for (const char* ids : {"Uid", "Gid"}) EXPECT_EQ(status[ids], "0\t0\t0\t0");
  EXPECT_EQ(status["Groups"], "");
  EXPECT_EQ(status["CapInh"], "0000000000000000");
  EXPECT_EQ(status["CapAmb"], "0000000000000000");
  // chown, dac_override, fowner, fsetid, setgid, setuid, setfcap: docs/security.md
  for (const char* set : {"CapPrm", "CapEff"}) EXPECT_EQ(status[set], "00000000800000db") << set;
  EXPECT_EQ(status["CapBnd"], "0000000000000000");
  EXPECT_EQ(status["NoNewPrivs"], "1");
  EXPECT_EQ(status["Seccomp"], "2");
  EXPECT_EQ(status["NSpid"], fmt::format("{}\t1", pid));
  EXPECT_EQ(Proc(pid, "environ"),
            std::string("PATH=/usr/sbin:/usr/bin:/sbin:/bin") + '\0' + "MALLOC_ARENA_MAX=1" + '\0');
  rlimit ours{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &ours), 0);
  EXPECT_THAT(Proc(pid, "limits"), ::testing::ContainsRegex(fmt::format(
                                       "Max open files +(1000000 +1000000|{0} +{0}) ", ours.rlim_max)))
      << "as many as can be had";
  ExpectOwnNamespaces(pid);
  std::set<std::string> root, volumes;
  for (const persist::PodVolume& volume : state.volumes) {
    if (volume.source == folder) volumes.insert(volume.name);
  }
  ASSERT_EQ(volumes.size(), 1U);
  for (const auto& entry : std::filesystem::directory_iterator(fmt::format("/proc/{}/root", pid)))
    root.insert(entry.path().filename());
  EXPECT_EQ(root, volumes) << "what the guest keeps itself it does not have";
  // Nothing that it sees honours setuid files or device nodes, and only volumes can be written.
  for (const std::string& line : SplitLines(Proc(pid, "mountinfo"))) {
    std::istringstream words(line);
    std::string skip, place, options;
    words >> skip >> skip >> skip >> skip >> place >> options;
    EXPECT_THAT(options, HasSubstr("nosuid")) << line;
    EXPECT_THAT(options, HasSubstr("nodev")) << line;
    if (!place.ends_with("/" + *volumes.begin())) {
      EXPECT_THAT(options, ::testing::StartsWith("ro,")) << line;
    }
  }
}

// What `probe ids` says when nobody runs that file.
std::string IdsOfNobody(const std::string& probe) {
  const UniqueFd file(open(probe.c_str(), O_PATH | O_CLOEXEC));
  int ends[2];
  if (!file || pipe2(ends, O_CLOEXEC) != 0) return probe + ": cannot be opened";
  const UniqueFd out(ends[0]);
  UniqueFd in(ends[1]);
  const pid_t pid = fork();
  if (pid == 0) {
    char* const argv[] = {const_cast<char*>("probe"), const_cast<char*>("ids"), nullptr};
    dup2(in.get(), 1);
    if (syscall(SYS_setgroups, 0, nullptr) == 0 && syscall(SYS_setresgid, 65534, 65534, 65534) == 0 &&
        syscall(SYS_setresuid, 65534, 65534, 65534) == 0) {
      syscall(SYS_execveat, file.get(), "", argv, environ, AT_EMPTY_PATH);
    }
    _exit(127);
  }
  in.reset();
  std::string said;
  char buffer[256];
  for (ssize_t n; (n = read(out.get(), buffer, sizeof buffer)) > 0;)
    said.append(buffer, static_cast<size_t>(n));
  waitpid(pid, nullptr, 0);
  return said;
}

TEST_F(ConfinementTest, WhatAGuestLeavesInAVolumeIsHarmlessOnTheHost) {
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run({}));
  const std::string folders[] = {
      TestNode().volumes_dir() + "/hostile-path",
      TestNode().volumes_dir() + "/pods/7/volumes/kubernetes.io~csi/hostile/mount"};
  ContainerSpec container = Sleeper();
  container.add_capabilities = {"ALL"};
  for (const std::string& folder : folders) {
    std::filesystem::create_directories(folder);
    container.mounts.push_back({fmt::format("/v{}", container.mounts.size()), folder});
  }
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), container));
  const persist::SandboxState state = State(pod.id());
  for (size_t i = 0; i < std::size(folders); ++i) {
    const std::string& folder = folders[i];
    const auto said =
        ShellIn(id, fmt::format("cd /v{} && cp /probe probe && chmod 6755 probe && mknod fifo p; "
                                "mknod null c 1 3 2>&1; mknod disk b 8 0 2>&1; ls",
                                i));
    ASSERT_OK(said.status());
    EXPECT_EQ(*said,
              "mknod: null: Operation not permitted\nmknod: disk: Operation not permitted\nfifo\nprobe\n");
    // The mark is on the host's file, as with any runtime; what the pod shares does not honour it.
    EXPECT_THAT(IdsOfNobody(folder + "/probe"), HasSubstr("uid=65534 euid=0"));
    std::string shared;
    for (const std::string& name : state.containers.at(id).mounts) {
      const std::string place = state.runtime_dir + "/shared/" + name;
      if (std::filesystem::exists(place) && std::filesystem::equivalent(place, folder)) shared = place;
    }
    ASSERT_NE(shared, "") << folder;
    EXPECT_THAT(IdsOfNobody(shared + "/probe"), HasSubstr("uid=65534 euid=65534"));
    // A node that somebody else made there.
    ASSERT_EQ(mknod((folder + "/node").c_str(), S_IFCHR | 0666, makedev(1, 3)), 0);
    EXPECT_TRUE(UniqueFd(open((folder + "/node").c_str(), O_RDWR | O_CLOEXEC)));
    EXPECT_FALSE(UniqueFd(open((shared + "/node").c_str(), O_RDWR | O_CLOEXEC)));
    EXPECT_EQ(errno, EACCES);
  }
}

// What else QEMU has not is checked of each pod that the kit makes (kit/confinement.h).
TEST_F(ConfinementTest, LivingPodsShareNoUser) {
  ASSERT_OK_AND_ASSIGN(const ScopedPod one, ScopedPod::Run({}));
  PodSpec another;
  another.name = "another";
  ASSERT_OK_AND_ASSIGN(const ScopedPod other, ScopedPod::Run(another));
  std::set<uid_t> users;
  for (const ScopedPod* pod : {&one, &other}) {
    ASSERT_OK(Cri().RunContainer(pod->id(), Sleeper()).status());  // its layers are handed over
    EXPECT_OK(CheckConfinement(TestNode().state_dir(), pod->id()));
    ASSERT_OK_AND_ASSIGN(const ProcessRights rights,
                         ReadProcessRights(static_cast<pid_t>(State(pod->id()).vmm.pid), getpid()));
    users.insert(rights.users.begin(), rights.users.end());
  }
  EXPECT_EQ(users.size(), 2u);
}

// `lamina doctor` finds the same in /proc.
TEST_F(ConfinementTest, TheDoctorShowsWhatAPodHasOfTheNode) {
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run({}));
  ASSERT_OK_AND_ASSIGN(const std::string said, TestNode().Lamina({"doctor"}));
  EXPECT_THAT(said, HasSubstr(fmt::format("QEMU (pid {}, user 20000", State(pod.id()).vmm.pid)));
  EXPECT_THAT(said, HasSubstr("have nothing of the node but the pod's volumes"));
  EXPECT_THAT(said, Not(HasSubstr("has of the node")));
}

TEST_F(ConfinementTest, AContainerHasTheOomScoreThatTheKubeletGives) {
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run({}));
  for (const int score : {1000, 500, 0}) {
    ContainerSpec container = Sleeper(fmt::format("main-{}", score));
    container.resources.oom_score_adj = score;
    ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), container));
    const int own = std::stoi(ReadText("/proc/self/oom_score_adj"));  // containerd goes no lower
    const std::string wanted = fmt::format("{}", std::max(score, own));
    EXPECT_EQ(Trim(ShellIn(id, "cat /proc/1/oom_score_adj").value_or("?")), wanted) << "its init";
    EXPECT_EQ(Trim(ShellIn(id, "cat /proc/self/oom_score_adj").value_or("?")), wanted) << "an exec";
  }
}

TEST_F(ConfinementTest, TheClaimIsEnforcedAndMovesWithTheSize) {
  PodSpec spec;
  spec.resources.memory = 128 * kMiB;
  spec.resources.cpu_quota = 50'000;
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  ContainerSpec container = Sleeper();
  container.resources = spec.resources;
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), container));
  const persist::SandboxState state = State(pod.id());
  const std::string file = MemoryFile(state);
  ASSERT_NE(file, "") << "no cgroup limits memory on this machine";
  const auto limit = [](uint64_t claim) { return cri::MemoryLimit(vmm::Accel::kTcg, claim); };
  EXPECT_EQ(Bytes(file), limit(state.claim_bytes));
  const std::string procs = Cgroup(state, {"pids.max"});
  ASSERT_NE(procs, "");
  EXPECT_EQ(Bytes(procs), cri::TaskLimit(state.max_vcpus));

  Resources more = spec.resources;
  more.memory = 256 * kMiB;
  ASSERT_OK(Cri().UpdateResources(id, more));
  const uint64_t grown = State(pod.id()).claim_bytes;
  EXPECT_GE(grown, state.claim_bytes + 128 * kMiB);
  EXPECT_EQ(Bytes(file), limit(grown));
  ASSERT_OK(Cri().UpdateResources(id, spec.resources));
  EXPECT_OK(Eventually(In(seconds(30)), [&]() -> absl::Status {
    const uint64_t claim = State(pod.id()).claim_bytes;
    if (claim < grown && Bytes(file) == limit(claim)) return absl::OkStatus();
    return MakeStatus(absl::StatusCode::kUnavailable, "claim {}, limit {}", claim, Bytes(file));
  }));
}

// A guest whose QEMU takes more than it may (here: whose limit was lowered by hand) ends, and it is said why.
TEST_F(ConfinementTest, AVmBeyondItsLimitEndsWithTheReason) {
  PodSpec spec;
  spec.name = "greedy";
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), Sleeper()));
  const persist::SandboxState state = State(pod.id());
  const std::string file = MemoryFile(state);
  ASSERT_NE(file, "");
  const std::string usage = Cgroup(state, {"memory.current", "memory.usage_in_bytes"});
  std::ofstream(file) << Bytes(usage) + 8 * kMiB;
  ASSERT_LT(Bytes(file), cri::MemoryLimit(vmm::Accel::kTcg, state.claim_bytes));
  Cri().ExecSync(id, {"sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=60"}).status().IgnoreError();
  ASSERT_OK(Eventually(In(seconds(30)), [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const PodInfo info, Cri().PodStatus(pod.id()));
    return info.ready ? absl::UnavailableError("the pod is still ready") : absl::OkStatus();
  }));
  EXPECT_THAT(ReadText(TestNode().dir() + "/containerd.log"), HasSubstr("the pod's processes used up the"));
}

}  // namespace
}  // namespace lamina::e2e
