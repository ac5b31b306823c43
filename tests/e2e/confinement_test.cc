// What a pod's processes on the host may do and have, as /proc and the cgroups show it.
#include "tests/e2e/kit/confinement.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "base/process_rights.h"
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
  EXPECT_THAT(said, HasSubstr(fmt::format("QEMU (pid {}, user 2000000", State(pod.id()).vmm.pid)));
  EXPECT_THAT(said, HasSubstr("has nothing of the node"));
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
