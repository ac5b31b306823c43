// What grows with each restart or exec would one day be too much: descriptors and mounts of a pod's
// processes. LAMINA_ENDURANCE multiplies the rounds (20: a hundred restarts, a thousand execs).
#include <cstdlib>
#include <filesystem>
#include <map>

#include "base/file_system.h"
#include "tests/e2e/kit/leftovers.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

using std::chrono::seconds;

int Rounds(int once) {
  const char* times = getenv("LAMINA_ENDURANCE");
  return once * std::max(1, times != nullptr ? atoi(times) : 1);
}

class EnduranceTest : public ::testing::Test {
 protected:
  void SetUp() override { LAMINA_ONLY(); }

  // OK once they hold what they held then; the guest lets go of a volume's inodes a little after the
  // container's end.
  absl::Status HeldAgain(const std::string& pod, std::map<std::string, std::string> settled) {
    return Eventually(In(seconds(30)), [&]() -> absl::Status {
      const auto held = Held(pod);
      if (held == settled) return absl::OkStatus();
      std::string text;
      for (const auto& [process, what] : held)
        text += fmt::format("{}: {}, at first {}; ", process, what, settled[process]);
      return absl::InternalError(text);
    });
  }

  // Of each process of the pod: open descriptors, and mounts that it sees of the node's folder.
  std::map<std::string, std::string> Held(const std::string& pod) {
    std::map<std::string, std::string> held;
    for (const Process& process : FindProcesses(TestNode().dir(), {})) {
      if (process.command.find(pod.substr(0, 7)) == std::string::npos) continue;
      for (const char* program : {"containerd-shim-lamina-v2", "qemu-system", "virtiofsd"}) {
        if (process.command.find(program) == std::string::npos) continue;
        const std::string proc = fmt::format("/proc/{}/", process.pid);
        size_t mounts = 0;
        for (const std::string& line : SplitLines(ReadText(proc + "mountinfo")))
          mounts += line.find(pod.substr(0, 7)) != std::string::npos ? 1 : 0;
        held[fmt::format("{} {}", program, process.pid)] +=
            fmt::format("{} descriptors, {} mounts", ListFolder(proc + "fd").size(), mounts);
      }
    }
    return held;
  }
};

TEST_F(EnduranceTest, RestartsWithManyMountsLeaveNothingOpen) {
  PodSpec spec;
  spec.name = "restarts";
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  ContainerSpec container = ShellContainer("main", "cat /m*/file >/dev/null; exit 3");
  for (int i = 0; i < 30; ++i) {
    const std::string dir = fmt::format("{}/restarts-{}", TestNode().volumes_dir(), i);
    std::filesystem::create_directories(dir);
    ASSERT_OK(FileSystem::Real().WriteAndSync(dir + "/file", "x", 0644));
    MountSpec mount;
    mount.host_path = dir;
    mount.container_path = fmt::format("/m{}", i);
    container.mounts.push_back(mount);
  }
  std::map<std::string, std::string> settled;
  for (int round = 0, rounds = Rounds(5); round < rounds; ++round) {
    ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), container));
    ASSERT_OK_AND_ASSIGN(const ContainerInfo info, Cri().WaitForExit(id, In(seconds(60))));
    ASSERT_EQ(info.exit_code, 3);
    ASSERT_OK(Cri().RemoveContainer(id));
    if (round == 1) settled = Held(pod.id());
  }
  ASSERT_EQ(settled.size(), 3U);
  EXPECT_OK(HeldAgain(pod.id(), settled));
}

TEST_F(EnduranceTest, ExecsLeaveNothingOpen) {
  PodSpec spec;
  spec.name = "execs";
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), Sleeper()));
  std::map<std::string, std::string> settled;
  for (int round = 0, rounds = Rounds(50); round < rounds; ++round) {
    ASSERT_OK(ShellIn(id, "true"));
    if (round == 10) settled = Held(pod.id());
  }
  EXPECT_OK(HeldAgain(pod.id(), settled));
}

}  // namespace
}  // namespace lamina::e2e
