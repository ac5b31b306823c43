#include "guest/agent/processes.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

using std::chrono::steady_clock;

// Reaps until the process has ended, as the agent's main thread does on SIGCHLD.
ProcessExit ReapUntilExit(ProcessTable& table, const ProcessRef& process) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  for (;;) {
    table.Reap();
    if (const auto exit = table.Exit(process)) return *exit;
    const timespec wait{0, 100'000'000};
    sigtimedwait(&set, nullptr, &wait);
  }
}

class ProcessTableTest : public ::testing::Test {
 protected:
  void SetUp() override {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
  }
  ProcessTable table_;
};

SpawnOptions Shell(const std::string& script) {
  SpawnOptions options;
  options.argv = {"/bin/sh", "-c", script};
  return options;
}

TEST_F(ProcessTableTest, ExitCodesAndSignalsAreTold) {
  auto exits = table_.Start(Shell("exit 3"));
  ASSERT_OK(exits);
  EXPECT_EQ(ReapUntilExit(table_, *exits).status, 3);
  auto killed = table_.Start(Shell("kill -9 $$"));
  ASSERT_OK(killed);
  const ProcessExit exit = ReapUntilExit(table_, *killed);
  EXPECT_EQ(exit.status, 137);
}

TEST_F(ProcessTableTest, SignalsReachOnlyAProcessThatHasNotBeenReaped) {
  auto process = table_.Start(Shell("exec sleep 1000"));
  ASSERT_OK(process);
  EXPECT_FALSE(table_.Wait(*process, steady_clock::now() + std::chrono::milliseconds(1)).has_value());
  EXPECT_OK(table_.Signal(*process, SIGTERM));
  EXPECT_EQ(ReapUntilExit(table_, *process).status, 143);
  EXPECT_THAT(table_.Signal(*process, SIGTERM), testing::HasStatus(absl::StatusCode::kNotFound));
}

// What crun leaves behind: a grandchild, inherited when its parent ends, that itself ends when told to.
class OrphanTest : public ProcessTableTest {
 protected:
  pid_t Orphan() {
    int pid_pipe[2], control[2];
    EXPECT_EQ(pipe2(pid_pipe, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(control, O_CLOEXEC), 0);
    SpawnOptions options = Shell("(read line; exit 5) <&4 & echo $! >&3");
    options.fds = {{pid_pipe[1], 3}, {control[0], 4}};
    auto parent = table_.Start(options);
    EXPECT_OK(parent);
    close(pid_pipe[1]);
    close(control[0]);
    control_.reset(control[1]);
    char text[32] = {};
    EXPECT_GT(read(pid_pipe[0], text, sizeof text - 1), 0);
    close(pid_pipe[0]);
    ReapUntilExit(table_, *parent);
    return atoi(text);
  }
  UniqueFd control_;
};

TEST_F(OrphanTest, AnAdoptedOrphanTellsItsExit) {
  ProcessTable::AdoptScope scope(table_);
  bool told = false;
  const ProcessRef orphan = table_.Adopt(Orphan(), [&told] { told = true; });
  control_.reset();
  EXPECT_EQ(ReapUntilExit(table_, orphan).status, 5);
  EXPECT_TRUE(told);
}

TEST_F(OrphanTest, AnOrphanThatEndedBeforeItsAdoptionTellsItToo) {
  ProcessTable::AdoptScope scope(table_);
  const pid_t pid = Orphan();
  control_.reset();
  siginfo_t info;
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT), 0);
  table_.Reap();
  bool told = false;
  const ProcessRef orphan = table_.Adopt(pid, [&told] { told = true; });
  EXPECT_EQ(table_.Exit(orphan)->status, 5);
  EXPECT_TRUE(told);
}

TEST_F(ProcessTableTest, AProgramThatIsNotThereIsNotFound) {
  SpawnOptions options;
  options.argv = {"/nonexistent/program"};
  EXPECT_THAT(table_.Start(options), testing::HasStatus(absl::StatusCode::kNotFound));
}

TEST_F(ProcessTableTest, WaitersOnOtherThreadsAreWoken) {
  auto process = table_.Start(Shell("exit 0"));
  ASSERT_OK(process);
  std::thread waiter([&] { EXPECT_EQ(table_.Wait(*process, std::nullopt)->status, 0); });
  ReapUntilExit(table_, *process);
  waiter.join();
}

}  // namespace
}  // namespace lamina::guest
