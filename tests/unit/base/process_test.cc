#include "base/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <future>
#include <string>
#include <thread>

#include "base/file_system.h"
#include "base/subprocess.h"
#include "tests/testing/status_matchers.h"

namespace lamina {
namespace {

using std::chrono::seconds;
using testing::HasStatus;

// A child whose first thread ends while another lives and holds the writing end of a pipe.
struct HeadlessChild {
  ~HeadlessChild() {
    const auto pid = static_cast<pid_t>(id.pid);
    if (waitpid(pid, nullptr, WNOHANG) != 0) return;
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
  const ProcessId id;
  const UniqueFd held;  // readable (end of file) once the other thread has ended
};

HeadlessChild StartHeadlessChild() {
  int ends[2];
  EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const pid_t pid = fork();
  if (pid == 0) {
    std::thread([] {
      for (;;) pause();
    }).detach();
    syscall(SYS_exit, 0);
  }
  close(ends[1]);
  siginfo_t info{};
  const auto is_zombie = [pid] {
    const std::string stat = FileSystem::Real().Read(fmt::format("/proc/{}/stat", pid), 4096).value_or("");
    return stat.find(") Z ") != std::string::npos;
  };
  const auto deadline = std::chrono::steady_clock::now() + seconds(30);
  while (!is_zombie() && std::chrono::steady_clock::now() < deadline) {
  }
  EXPECT_TRUE(is_zombie());
  EXPECT_EQ(waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT), 0);
  EXPECT_EQ(info.si_pid, 0) << "nothing to reap: the process has not ended";
  return {{pid, ProcessStartTime(pid).value_or(0)}, UniqueFd(ends[0])};
}

bool Readable(int fd) {
  pollfd end{fd, POLLIN, 0};
  return poll(&end, 1, 0) == 1;
}

TEST(Process, LivesAsLongAsItsLastThread) {
  const HeadlessChild child = StartHeadlessChild();
  EXPECT_TRUE(ProcessAlive(child.id));
  EXPECT_FALSE(Readable(child.held.get()));
  EXPECT_OK(KillProcess(child.id, seconds(30)));
  EXPECT_TRUE(Readable(child.held.get())) << "killed, and still running";
  EXPECT_FALSE(ProcessAlive(child.id));
}

TEST(Process, ThatCannotBeLookedAtIsNotTakenForDead) {
  SpawnOptions options;
  options.argv = {"sleep", "1000"};
  const auto pid = Spawn(options);
  ASSERT_OK(pid);
  const ProcessId id{*pid, ProcessStartTime(*pid).value_or(0)};
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
  const rlimit none{0, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const bool alive = ProcessAlive(id);
  const absl::Status killed = KillProcess(id, seconds(1));
  setrlimit(RLIMIT_NOFILE, &old);
  EXPECT_TRUE(alive);
  EXPECT_THAT(killed, HasStatus(absl::StatusCode::kResourceExhausted, "Too many open files"));
  EXPECT_OK(KillProcess(id, seconds(30)));
  EXPECT_FALSE(ProcessAlive(id));
}

TEST(Process, APidTakenByAThreadIsAnotherProcess) {
  std::promise<pid_t> started;
  std::promise<void> seen;
  std::thread thread([&] {
    started.set_value(static_cast<pid_t>(syscall(SYS_gettid)));
    seen.get_future().wait();
  });
  const ProcessId id{started.get_future().get(), 1};
  EXPECT_OK(KillProcess(id, seconds(1)));
  EXPECT_FALSE(ProcessAlive(id));
  seen.set_value();
  thread.join();
}

TEST(Process, NoneIsNotAlive) {
  for (const int64_t pid : {int64_t{0}, int64_t{-1}, (int64_t{1} << 32) + getpid()}) {
    const ProcessId id{pid, *ProcessStartTime(getpid())};
    EXPECT_FALSE(ProcessAlive(id)) << pid;
    EXPECT_THAT(OpenProcess(id).status(), HasStatus(absl::StatusCode::kNotFound, "has ended"));
    EXPECT_OK(KillProcess(id, seconds(1)));
  }
}

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
  EXPECT_OK(KillProcess(*pid, start_time + 1, seconds(5)));
  EXPECT_TRUE(ProcessAlive(*pid, start_time));
  EXPECT_OK(KillProcess(*pid, start_time, seconds(5)));
  EXPECT_FALSE(ProcessAlive(*pid, start_time));
  EXPECT_OK(KillProcess(*pid, start_time, seconds(5)));
  EXPECT_OK(KillProcess(0, 0, seconds(5)));
}

}  // namespace
}  // namespace lamina
