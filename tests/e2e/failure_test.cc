// Bad input and deaths: an error in time that says what is wrong, and nothing left behind.
#include <signal.h>

#include <filesystem>
#include <fstream>

#include "tests/e2e/kit/leftovers.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class FailureTest : public ::testing::Test {
 protected:
  void SetUp() override { LAMINA_ONLY(); }
  void TearDown() override {
    if (!IsLamina()) return;
    // Each test removes its pods: whatever is found was leaked.
    EXPECT_THAT(TestNode().Leftovers(In(seconds(15))), IsEmpty());
  }

  // Runs a pod with a changed configuration, which must fail within `limit` with this text, then restores it.
  void ExpectRefusal(const std::map<std::string, std::string>& change,
                     const std::map<std::string, std::string>& restore, const std::string& text,
                     seconds limit = seconds(15)) {
    ASSERT_OK(TestNode().Reconfigure(change));
    PodSpec spec;
    spec.name = "refused";
    const auto begin = std::chrono::steady_clock::now();
    const auto pod = Cri().RunPod(spec);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, limit);
    ASSERT_OK(TestNode().Reconfigure(restore));
    ASSERT_NOT_OK(pod);
    EXPECT_THAT(Message(pod.status()), HasSubstr(text));
  }

  int PidOf(const std::string& pod, const std::string& program) {
    for (const Process& process : FindProcesses(TestNode().dir(), {})) {
      if (process.command.find(program) != std::string::npos &&
          process.command.find(pod) != std::string::npos)
        return process.pid;
    }
    return 0;
  }

  absl::Status NotReady(const std::string& pod) {
    return Eventually(In(seconds(15)), [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const PodInfo info, Cri().PodStatus(pod));
      return info.ready ? absl::UnavailableError("the pod is still ready") : absl::OkStatus();
    });
  }

  std::string Quoted(const std::string& text) { return '"' + text + '"'; }
};

TEST_F(FailureTest, NoKernel) {
  const std::string empty = TestNode().volumes_dir() + "/no-guest";
  std::filesystem::create_directories(empty);
  std::string good;
  for (const std::string& line : SplitLines(ReadText(TestNode().config_path()))) {
    if (line.rfind("guest_dir = ", 0) == 0) good = line.substr(12);
  }
  ExpectRefusal({{"paths.guest_dir", Quoted(empty)}}, {{"paths.guest_dir", good}}, "vmlinux");
}

TEST_F(FailureTest, NoQemu) {
  ExpectRefusal({{"hypervisor.qemu", Quoted("/no/such/qemu")}},
                {{"hypervisor.qemu", Quoted("qemu-system-x86_64")}}, "/no/such/qemu");
}

TEST_F(FailureTest, NoVirtiofsd) {
  ExpectRefusal({{"hypervisor.virtiofsd", Quoted("/no/such/virtiofsd")}},
                {{"hypervisor.virtiofsd", Quoted("/usr/lib/qemu/virtiofsd")}}, "virtiofsd");
}

TEST_F(FailureTest, AKernelThatPanics) {
  ExpectRefusal({{"hypervisor.kernel_args", Quoted("rdinit=/no/such/init")}},
                {{"hypervisor.kernel_args", Quoted("")}}, "", seconds(40));
}

TEST_F(FailureTest, AStateFolderThatCannotBeWritten) {
  // A file in the folder's place: root may write everywhere else.
  const std::string file = TestNode().volumes_dir() + "/a-file";
  std::ofstream(file) << "x";
  ExpectRefusal({{"paths.state_dir", Quoted(file + "/state")}},
                {{"paths.state_dir", Quoted(TestNode().state_dir())}}, file);
}

TEST_F(FailureTest, AMisspeltOption) {
  std::ofstream(TestNode().config_path(), std::ios::app) << "\n[sizing2]\noverhaed_cpu = 1\n";
  PodSpec spec;
  const auto pod = Cri().RunPod(spec);
  ASSERT_OK(TestNode().Reconfigure({}));
  ASSERT_NOT_OK(pod);
  EXPECT_THAT(Message(pod.status()), HasSubstr("sizing2"));
}

TEST_F(FailureTest, AnnotationsThatAreNotAllowedOrNotParsable) {
  PodSpec spec;
  spec.annotations = {{"lamina.io/overhead-cpu", "2"}};
  auto pod = Cri().RunPod(spec);
  ASSERT_NOT_OK(pod);
  EXPECT_THAT(Message(pod.status()), HasSubstr("lamina.io/overhead-cpu"));
  ASSERT_OK(TestNode().Reconfigure(
      {{"sizing.allowed_annotations", "[\"overhead-cpu\", \"lamina.io/overhead-cpu\"]"}}));
  spec.annotations = {{"lamina.io/overhead-cpu", "a lot"}};
  pod = Cri().RunPod(spec);
  EXPECT_NOT_OK(pod);
  EXPECT_THAT(Message(pod.status()), HasSubstr("lamina.io/overhead-cpu"));
  spec.annotations = {{"lamina.io/overhead-cpu", "1.5"}};
  spec.resources.cpu_quota = 50'000;
  pod = Cri().RunPod(spec);
  ASSERT_OK(TestNode().Reconfigure({{"sizing.allowed_annotations", "[]"}}));
  ASSERT_OK(pod.status());
  ASSERT_OK_AND_ASSIGN(const std::string sandboxes, TestNode().Rest("/v1/sandboxes"));
  EXPECT_THAT(sandboxes, HasSubstr("\"vcpus\": 2"));
  EXPECT_OK(Cri().RemovePod(*pod));
}

TEST_F(FailureTest, LaminadAway) {
  PodSpec spec;
  spec.name = "before";
  ASSERT_OK_AND_ASSIGN(const ScopedPod before, ScopedPod::Run(spec));
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(before.id(), Sleeper()));
  spec.name = "leaves";
  ASSERT_OK_AND_ASSIGN(ScopedPod leaves, ScopedPod::Run(spec));
  ASSERT_OK(TestNode().StopLaminad(SIGKILL));
  // Pods run on, stop and are deleted; a new one is refused for now.
  EXPECT_OK(ShellIn(id, "true").status());
  EXPECT_OK(leaves.Remove());
  spec.name = "after";
  const auto begin = std::chrono::steady_clock::now();
  const auto refused = Cri().RunPod(spec);
  EXPECT_NOT_OK(refused);
  EXPECT_THAT(Message(refused.status()), HasSubstr("laminad"));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, seconds(15));
  ASSERT_OK(TestNode().StartLaminad());
  ASSERT_OK_AND_ASSIGN(const std::string claims, TestNode().Rest("/v1/claims"));
  EXPECT_THAT(claims, HasSubstr(before.id()));
  EXPECT_EQ(claims.find("\"leaves\""), std::string::npos) << "what ended meanwhile is not claimed any more";
  ASSERT_OK_AND_ASSIGN(const ScopedPod after, ScopedPod::Run(spec));
  EXPECT_OK(Cri().RunContainer(after.id(), Sleeper()).status());
}

TEST_F(FailureTest, QemuDies) {
  PodSpec spec;
  spec.name = "dying";
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), Sleeper()));
  const int qemu = PidOf(pod.id(), "qemu-system");
  ASSERT_NE(qemu, 0);
  ASSERT_EQ(kill(qemu, SIGKILL), 0);
  EXPECT_OK(NotReady(pod.id()));
  ASSERT_OK_AND_ASSIGN(const ContainerInfo info, Cri().WaitForExit(id, In(seconds(15))));
  EXPECT_NE(info.exit_code, 0);
}

// Without it the guest's programs would wait for their volumes for ever.
TEST_F(FailureTest, VirtiofsdDies) {
  PodSpec spec;
  spec.name = "unshared";
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), Sleeper()));
  const int virtiofsd = PidOf(pod.id().substr(0, 7), "/usr/lib/qemu/virtiofsd");
  ASSERT_NE(virtiofsd, 0);
  ASSERT_EQ(kill(virtiofsd, SIGKILL), 0);
  EXPECT_OK(NotReady(pod.id()));
  ASSERT_OK_AND_ASSIGN(const ContainerInfo info, Cri().WaitForExit(id, In(seconds(15))));
  EXPECT_NE(info.exit_code, 0);
}

TEST_F(FailureTest, TheShimDies) {
  PodSpec spec;
  spec.name = "orphan";
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), Sleeper()));
  const int shim = PidOf(pod.id(), "containerd-shim-lamina-v2");
  ASSERT_NE(shim, 0);
  ASSERT_EQ(kill(shim, SIGKILL), 0);
  EXPECT_OK(NotReady(pod.id()));
  EXPECT_OK(Eventually(In(seconds(15)), [&]() -> absl::Status {
    return PidOf(pod.id(), "qemu-system") == 0 ? absl::OkStatus() : absl::InternalError("its QEMU lives on");
  }));
}

// A guest that says nothing any more: the pod's end does not depend on it.
TEST_F(FailureTest, AVmThatStandsStillIsEndedWithItsPod) {
  PodSpec spec;
  spec.name = "frozen";
  ASSERT_OK_AND_ASSIGN(ScopedPod pod, ScopedPod::Run(spec));
  ASSERT_OK(Cri().RunContainer(pod.id(), Sleeper()));
  const int qemu = PidOf(pod.id(), "qemu-system");
  ASSERT_NE(qemu, 0);
  ASSERT_EQ(kill(qemu, SIGSTOP), 0);
  ASSERT_OK(Cri().StopPod(pod.id()));
  EXPECT_EQ(PidOf(pod.id(), "qemu-system"), 0);
  EXPECT_OK(pod.Remove());
}

// containerd has no connection to it any more, and calls `delete`.
TEST_F(FailureTest, AShimThatStandsStillIsEndedWithItsPod) {
  PodSpec spec;
  spec.name = "stuck";
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  const int shim = PidOf(pod.id(), "containerd-shim-lamina-v2");
  ASSERT_NE(shim, 0);
  ASSERT_EQ(kill(shim, SIGSTOP), 0);
  ASSERT_OK(TestNode().StopContainerd(SIGKILL));
  ASSERT_OK(TestNode().StartContainerd());
  EXPECT_OK(Eventually(In(seconds(30)), [&]() -> absl::Status {
    if (PidOf(pod.id(), "containerd-shim-lamina-v2") != 0) return absl::InternalError("the shim lives on");
    return PidOf(pod.id(), "qemu-system") == 0 ? absl::OkStatus() : absl::InternalError("its QEMU lives on");
  }));
}

TEST_F(FailureTest, ContainerdRestartsUnderALivePod) {
  PodSpec spec;
  spec.name = "survivor";
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec));
  ASSERT_OK_AND_ASSIGN(
      const std::string id,
      Cri().RunContainer(pod.id(),
                         ShellContainer("main", "trap 'exit 17' TERM; while :; do sleep 0.1; done")));
  ASSERT_OK(TestNode().StopContainerd(SIGKILL));
  ASSERT_OK(TestNode().StartContainerd());
  ASSERT_OK_AND_ASSIGN(const PodInfo info, Cri().PodStatus(pod.id()));
  EXPECT_TRUE(info.ready);
  ASSERT_OK_AND_ASSIGN(const ContainerInfo status, Cri().Status(id));
  EXPECT_EQ(status.state, ContainerState::kRunning);
  EXPECT_EQ(ShellIn(id, "echo same").value_or("?"), "same\n");
  ASSERT_OK(Cri().StopContainer(id, 10));
  ASSERT_OK_AND_ASSIGN(const ContainerInfo end, Cri().Status(id));
  EXPECT_EQ(end.exit_code, 17);
}

TEST_F(FailureTest, StoppingAndRemovingTwiceIsNoError) {
  PodSpec spec;
  spec.name = "twice";
  ASSERT_OK_AND_ASSIGN(const std::string pod, Cri().RunPod(spec));
  ASSERT_OK(Cri().RunContainer(pod, Sleeper()));
  for (int i = 0; i < 2; ++i) EXPECT_OK(Cri().StopPod(pod));
  for (int i = 0; i < 2; ++i) EXPECT_OK(Cri().RemovePod(pod));
}

TEST_F(FailureTest, ManyPodsComeAndGoTogether) {
  std::vector<std::thread> threads;
  std::vector<absl::Status> results(4);
  for (size_t i = 0; i < results.size(); ++i) {
    threads.emplace_back([&results, i] {
      results[i] = [&]() -> absl::Status {
        PodSpec spec;
        spec.name = fmt::format("many-{}", i);
        ASSIGN_OR_RETURN(const std::string pod, Cri().RunPod(spec));
        ASSIGN_OR_RETURN(const std::string id, Cri().RunContainer(pod, Sleeper()));
        ASSIGN_OR_RETURN(const std::string name, ShellIn(id, "hostname"));
        if (name != spec.name + "\n") return absl::InternalError("hostname is " + name);
        return Cri().RemovePod(pod);
      }();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& result : results) EXPECT_OK(result);
}

}  // namespace
}  // namespace lamina::e2e
