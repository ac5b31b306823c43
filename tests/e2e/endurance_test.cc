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

  struct Count {
    size_t descriptors = 0, mounts = 0;
  };

  // Of each process that the pod has for its life: open descriptors, and mounts of the pod that it sees.
  std::map<std::string, Count> Held(const std::string& pod) {
    const std::string id = pod.substr(0, 7);
    std::map<std::string, Count> held;
    for (const Process& process : FindProcesses(TestNode().dir(), {})) {
      if (process.command.find(id) == std::string::npos) continue;
      for (const char* program : {"qemu-system", "virtiofsd --fd", " serve"}) {
        if (process.command.find(program) == std::string::npos) continue;
        const std::string proc = fmt::format("/proc/{}/", process.pid);
        Count& count = held[fmt::format("{} {}", program, process.pid)];
        count.descriptors = ListFolder(proc + "fd").size();
        for (const std::string& line : SplitLines(ReadText(proc + "mountinfo")))
          count.mounts += line.find(id) != std::string::npos ? 1 : 0;
        break;
      }
    }
    return held;
  }

  // OK once no process holds what grows with the rounds: less than one more for each since `then`. What comes
  // once is no leak (laminad opens a connection to QEMU when it first looks at the guest's balloon), and the
  // guest lets go of a volume's inodes a little after the container's end.
  absl::Status NothingGrows(const std::map<std::string, Count>& then, const std::string& pod, size_t rounds) {
    return Eventually(In(seconds(30)), [&]() -> absl::Status {
      for (const auto& [process, now] : Held(pod)) {
        const auto before = then.find(process);
        if (before == then.end()) return absl::InternalError(process + " is new");
        const Count& old = before->second;
        if (now.descriptors >= old.descriptors + rounds || now.mounts > old.mounts) {
          return absl::InternalError(
              fmt::format("{} has {} descriptors and {} mounts; {} rounds ago it had {} and {}", process,
                          now.descriptors, now.mounts, rounds, old.descriptors, old.mounts));
        }
      }
      return absl::OkStatus();
    });
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
  std::map<std::string, Count> settled;
  const int rounds = Rounds(5);
  for (int round = 0; round < rounds; ++round) {
    ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), container));
    ASSERT_OK_AND_ASSIGN(const ContainerInfo info, Cri().WaitForExit(id, In(seconds(60))));
    ASSERT_EQ(info.exit_code, 3);
    ASSERT_OK(Cri().RemoveContainer(id));
    if (round == 1) settled = Held(pod.id());
  }
  ASSERT_EQ(settled.size(), 3U) << "shim, QEMU, virtiofsd";
  EXPECT_OK(NothingGrows(settled, pod.id(), static_cast<size_t>(rounds - 2)));
}

TEST_F(EnduranceTest, ExecsLeaveNothingOpen) {
  PodSpec spec;
  spec.name = "execs";
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), Sleeper()));
  std::map<std::string, Count> settled;
  const int rounds = Rounds(50);
  for (int round = 0; round < rounds; ++round) {
    ASSERT_OK(ShellIn(id, "true"));
    if (round == 10) settled = Held(pod.id());
  }
  EXPECT_OK(NothingGrows(settled, pod.id(), static_cast<size_t>(rounds - 11)));
}

}  // namespace
}  // namespace lamina::e2e
