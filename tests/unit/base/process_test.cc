#include "base/process.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/subprocess.h"
#include "tests/testing/status_matchers.h"

namespace lamina {
namespace {

TEST(ProcessStartTime, NamesOneProcess) {
  const auto mine = ProcessStartTime(getpid());
  ASSERT_OK(mine);
  EXPECT_TRUE(ProcessAlive(getpid(), *mine));
  EXPECT_FALSE(ProcessAlive(getpid(), *mine + 1));
  SpawnOptions options;
  options.argv = {"sleep", "1000"};
  const pid_t pid = *Spawn(options);
  const uint64_t start = *ProcessStartTime(pid);
  kill(pid, SIGKILL);
  siginfo_t info{};
  waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT);
  EXPECT_FALSE(ProcessAlive(pid, start)) << "a zombie counts as gone";
  waitpid(pid, nullptr, 0);
}

TEST(KillProcess, EndsThatVeryProcessAndNoOther) {
  SpawnOptions options;
  options.argv = {"sleep", "1000"};
  const auto pid = Spawn(options);
  ASSERT_OK(pid);
  const uint64_t start_time = ProcessStartTime(*pid).value_or(0);
  // The same number, another life: a process that has taken the pid since.
  EXPECT_OK(KillProcess(*pid, start_time + 1, std::chrono::seconds(5)));
  EXPECT_TRUE(ProcessAlive(*pid, start_time));
  EXPECT_OK(KillProcess(*pid, start_time, std::chrono::seconds(5)));
  EXPECT_FALSE(ProcessAlive(*pid, start_time));
  EXPECT_OK(KillProcess(*pid, start_time, std::chrono::seconds(5)));
  EXPECT_OK(KillProcess(0, 0, std::chrono::seconds(5)));
}

}  // namespace
}  // namespace lamina
