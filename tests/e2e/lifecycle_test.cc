// Containers from create to remove: exits, signals, logs, statistics, memory.
#include <thread>

#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;
using ::testing::HasSubstr;

constexpr int64_t kMiB = 1 << 20;

class LifecycleTest : public SharedPodTest {};

TEST_F(LifecycleTest, ExitCodesAndReasonsArrive) {
  for (const int code : {0, 7, 255}) {
    ASSERT_OK_AND_ASSIGN(const Finished finished, RunToEnd(ShellContainer(fmt::format("exit-{}", code),
                                                                          fmt::format("exit {}", code))));
    EXPECT_EQ(finished.info.exit_code, code);
    EXPECT_EQ(finished.info.reason, code == 0 ? "Completed" : "Error");
    // containerd notes the start when Start has answered, the end by the shim's clock: a program that ends at
    // once may be done a moment earlier.
    EXPECT_GE(finished.info.finished_at + 1'000'000'000, finished.info.started_at);
  }
}

TEST_F(LifecycleTest, BothStreamsAreInTheLog) {
  ASSERT_OK_AND_ASSIGN(const Finished finished,
                       RunToEnd(ShellContainer("streams", "echo one; echo two >&2; printf end")));
  EXPECT_EQ(finished.out, "one\nend") << "a last line without its newline is logged as partial";
  EXPECT_EQ(finished.err, "two\n");
}

TEST_F(LifecycleTest, LongLinesAndMuchOutputAreLoggedWhole) {
  // runc's shim of containerd 1.6 sometimes loses the tail of what a program prints just before its end. Ours
  // must not.
  const std::string linger = IsLamina() ? "" : "; sleep 1";
  ASSERT_OK_AND_ASSIGN(
      const Finished finished,
      RunToEnd(ShellContainer("long", "head -c 100000 /dev/zero | tr '\\0' x; echo; seq 1 20000" + linger)));
  const std::vector<std::string> lines = SplitLines(finished.out);
  ASSERT_EQ(lines.size(), 20001U);
  EXPECT_EQ(lines[0], std::string(100000, 'x'));
  EXPECT_EQ(lines[20000], "20000");
}

TEST_F(LifecycleTest, TheLogIsReopenedAfterRotation) {
  ASSERT_OK_AND_ASSIGN(
      const std::string id,
      Cri().RunContainer(pod(),
                         ShellContainer("rotated", "echo first; while :; do sleep 0.1; echo more; done")));
  const auto logged = [&](const std::string& text) {
    return Eventually(In(seconds(20)), [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::string log, Cri().LogText(id));
      return log.find(text) != std::string::npos ? absl::OkStatus() : absl::NotFoundError(log);
    });
  };
  ASSERT_OK(logged("first"));
  ASSERT_OK_AND_ASSIGN(const ContainerInfo info, Cri().Status(id));
  ASSERT_EQ(rename(info.log_path.c_str(), (info.log_path + ".1").c_str()), 0);
  ASSERT_OK(Cri().ReopenLog(id));
  ASSERT_OK(logged("more"));
  ASSERT_OK_AND_ASSIGN(const std::string log, Cri().LogText(id));
  EXPECT_EQ(log.find("first"), std::string::npos);
  EXPECT_OK(Cri().StopContainer(id, 0));
  EXPECT_OK(Cri().RemoveContainer(id));
}

TEST_F(LifecycleTest, StopLetsAProgramEndByItself) {
  ASSERT_OK_AND_ASSIGN(const std::string id,
                       Cri().RunContainer(pod(), ShellContainer("polite",
                                                                "trap 'echo term; exit 21' TERM; echo armed; "
                                                                "while :; do sleep 0.1; done")));
  ASSERT_OK(Eventually(In(seconds(20)), [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string log, Cri().LogText(id));
    return log == "armed\n" ? absl::OkStatus() : absl::NotFoundError(log);
  }));
  const auto begin = steady_clock::now();
  ASSERT_OK(Cri().StopContainer(id, 20));
  EXPECT_LT(steady_clock::now() - begin, seconds(15));
  ASSERT_OK_AND_ASSIGN(const ContainerInfo info, Cri().Status(id));
  EXPECT_EQ(info.state, ContainerState::kExited);
  EXPECT_EQ(info.exit_code, 21);
  EXPECT_OK(Cri().StopContainer(id, 1)) << "stopping a stopped container is no error";
  EXPECT_OK(Cri().RemoveContainer(id));
}

TEST_F(LifecycleTest, StopKillsWhatDoesNotListen) {
  ASSERT_OK_AND_ASSIGN(
      const std::string id,
      Cri().RunContainer(pod(), ShellContainer("deaf", "trap '' TERM; while :; do sleep 0.2; done")));
  const auto begin = steady_clock::now();
  ASSERT_OK(Cri().StopContainer(id, 1));
  const auto took = steady_clock::now() - begin;
  EXPECT_GE(took, std::chrono::milliseconds(900));
  EXPECT_LT(took, seconds(15));
  ASSERT_OK_AND_ASSIGN(const ContainerInfo info, Cri().Status(id));
  EXPECT_EQ(info.exit_code, 137);
  EXPECT_OK(Cri().RemoveContainer(id));
}

TEST_F(LifecycleTest, AMissingProgramFailsTheStartWithItsName) {
  ContainerSpec spec = Sleeper("missing");
  spec.command = {"/no/such/program"};
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().CreateContainer(pod(), spec));
  const absl::Status started = Cri().StartContainer(id);
  EXPECT_NOT_OK(started);
  EXPECT_THAT(Message(started), HasSubstr("/no/such/program"));
  EXPECT_OK(Cri().RemoveContainer(id));
  EXPECT_EQ(Shell("echo alive"), "alive\n");
}

TEST_F(LifecycleTest, AContainerStartsAgainAfterItsEnd) {
  for (int attempt = 0; attempt < 3; ++attempt) {
    ASSERT_OK_AND_ASSIGN(const Finished finished,
                         RunToEnd(ShellContainer("again", "test ! -e /tmp/seen && touch /tmp/seen")));
    EXPECT_EQ(finished.info.exit_code, 0) << "a new container has a new writable layer";
  }
}

TEST_F(LifecycleTest, ContainersOfAPodRunSideBySide) {
  std::vector<std::string> ids;
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK_AND_ASSIGN(std::string id, Cri().RunContainer(pod(), Sleeper(fmt::format("side-{}", i))));
    ids.push_back(std::move(id));
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    ASSERT_OK(ShellIn(ids[i], fmt::format("echo {} >/tmp/mine", i)).status());
    // One network and one hostname for all; a PID namespace and a root for each.
    ASSERT_OK_AND_ASSIGN(const std::string out,
                         ShellIn(ids[i], "hostname; ps | grep -c '[s]leep 1000000'; cat /tmp/mine"));
    EXPECT_EQ(out, fmt::format("shared\n1\n{}\n", i));
  }
  ASSERT_OK(ShellIn(ids[0], "nc -l -p 7777 -e echo hi >/dev/null 2>&1 &").status());
  EXPECT_OK(Eventually(In(seconds(10)),
                       [&] { return ShellIn(ids[1], "nc 127.0.0.1 7777 </dev/null | grep hi").status(); }));
  for (const std::string& id : ids) {
    EXPECT_OK(Cri().StopContainer(id, 0));
    EXPECT_OK(Cri().RemoveContainer(id));
  }
  EXPECT_EQ(Shell("echo alive"), "alive\n");
}

TEST_F(LifecycleTest, RemoveOfARunningContainerEndsIt) {
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod(), Sleeper("removed")));
  ASSERT_OK(Cri().RemoveContainer(id));
  EXPECT_THAT(Cri().Status(id), testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_OK(Cri().RemoveContainer(id)) << "removing twice is no error";
}

TEST_F(LifecycleTest, MemoryOverTheLimitIsOomKilled) {
  ContainerSpec spec = Sleeper("hungry");
  spec.command = {"/probe", "eat", "80"};
  spec.resources.memory = 24 * kMiB;
  ASSERT_OK_AND_ASSIGN(const Finished finished, RunToEnd(spec));
  EXPECT_EQ(finished.info.exit_code, 137);
  EXPECT_EQ(finished.info.reason, "OOMKilled");
  EXPECT_EQ(finished.out, "");
  EXPECT_EQ(Shell("echo alive"), "alive\n") << "the pod's other containers live on";
}

TEST_F(LifecycleTest, StatisticsFollowWhatTheContainerDoes) {
  ContainerSpec spec = Sleeper("measured");
  spec.command = {"sh", "-c", "/probe eat 24 10000 & wait"};
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod(), spec));
  ASSERT_OK(Eventually(In(seconds(20)), [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string log, Cri().LogText(id));
    return log == "ate 24 MiB\n" ? absl::OkStatus() : absl::NotFoundError(log);
  }));
  ASSERT_OK_AND_ASSIGN(const ContainerUsage before, Cri().Usage(id));
  EXPECT_GE(before.memory_working_set, 24U * kMiB);
  EXPECT_LT(before.memory_working_set, 64U * kMiB);
  EXPECT_GT(before.cpu_nanos, 0U);
  ASSERT_OK_AND_ASSIGN(const ExecResult burn, Cri().ExecSync(id, {"/probe", "burn", "400"}, 60));
  EXPECT_EQ(burn.out, "burnt\n");
  ASSERT_OK_AND_ASSIGN(const ContainerUsage after, Cri().Usage(id));
  EXPECT_GE(after.cpu_nanos - before.cpu_nanos, 390'000'000U);
  EXPECT_LT(after.cpu_nanos - before.cpu_nanos, 20'000'000'000U);
  ASSERT_OK_AND_ASSIGN(const auto all, Cri().AllUsage(pod()));
  EXPECT_GE(all.size(), 2U);
  ASSERT_OK_AND_ASSIGN(const ContainerUsage whole, Cri().PodUsage(pod()));
  EXPECT_GE(whole.memory_usage, before.memory_working_set);
  EXPECT_OK(Cri().StopContainer(id, 0));
  EXPECT_OK(Cri().RemoveContainer(id));
}

TEST_F(LifecycleTest, ResourcesOfALiveContainerCanBeChanged) {
  ContainerSpec spec = Sleeper("updated");
  spec.resources.memory = 40 * kMiB;
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod(), spec));
  const std::string limit =
      "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
  EXPECT_EQ(Trim(ShellIn(id, limit).value_or("?")), std::to_string(40 * kMiB));
  Resources changed;
  changed.memory = 56 * kMiB;
  changed.cpu_quota = 30'000;
  for (int i = 0; i < 2; ++i) ASSERT_OK(Cri().UpdateResources(id, changed)) << "the kubelet repeats it";
  EXPECT_EQ(Trim(ShellIn(id, limit).value_or("?")), std::to_string(56 * kMiB));
  EXPECT_OK(Cri().StopContainer(id, 0));
  EXPECT_OK(Cri().RemoveContainer(id));
}

TEST_F(LifecycleTest, ATerminalAsMainProcess) {
  ContainerSpec spec = ShellContainer("terminal", "tty; echo on-stderr >&2; read line; echo got:$line");
  spec.tty = spec.std_in = true;
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod(), spec));
  ASSERT_OK_AND_ASSIGN(auto stream, Cri().Attach(id, /*tty=*/true, /*std_in=*/true));
  ASSERT_OK(stream->Write("typed\n", In(seconds(5))));
  ASSERT_OK_AND_ASSIGN(const ContainerInfo info, Cri().WaitForExit(id, In(seconds(20))));
  EXPECT_EQ(info.exit_code, 0);
  EXPECT_OK(Eventually(In(seconds(5)), [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string log, Cri().LogText(id));
    for (const char* part : {"/dev/", "on-stderr", "got:typed"}) {
      if (log.find(part) == std::string::npos) return absl::NotFoundError(log);
    }
    return absl::OkStatus();
  }));
  EXPECT_OK(Cri().RemoveContainer(id));
}

}  // namespace
}  // namespace lamina::e2e
