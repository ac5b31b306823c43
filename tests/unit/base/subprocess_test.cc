#include "base/subprocess.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <future>

#include "base/file_system.h"
#include "base/process.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina {
namespace {

using std::chrono::seconds;
using testing::HasStatus;
using testing::TempDir;

TEST(RunCommand, GivesOutputAndCode) {
  const auto result = RunCommand({"sh", "-c", "echo out; echo err >&2; exit 3"}, seconds(30));
  ASSERT_OK(result);
  EXPECT_EQ(result->exit_code, 3);
  EXPECT_EQ(result->output, "out\nerr\n");
  EXPECT_EQ(RunCommand({"sh", "-c", "kill -9 $$"}, seconds(30))->exit_code, 137);
}

TEST(RunCommand, MissingProgramIsNamed) {
  EXPECT_THAT(RunCommand({"no-such-program-x"}, seconds(5)),
              HasStatus(absl::StatusCode::kNotFound, "no-such-program-x"));
}

TEST(RunCommand, TimeoutKillsTheWholeGroup) {
  TempDir dir;
  const std::string pid_file = dir / "pid";
  const auto result = RunCommand({"sh", "-c", "sleep 1000 & echo $! > " + pid_file + "; wait"},
                                 std::chrono::milliseconds(500));
  EXPECT_THAT(result, HasStatus(absl::StatusCode::kDeadlineExceeded, "500 ms"));
  const int pid = std::stoi(*FileSystem::Real().Read(pid_file, 100));
  // The grandchild is init's to reap; what counts is that it does not run.
  const auto deadline = std::chrono::steady_clock::now() + seconds(10);
  while (ProcessStartTime(pid).ok() && std::chrono::steady_clock::now() < deadline) {
  }
  EXPECT_NOT_OK(ProcessStartTime(pid));
}

TEST(RunCommand, WhoAsksToStopEndsTheWholeGroup) {
  TempDir dir;
  const std::string fifo = dir / "alive";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  std::stop_source stop;
  auto running = std::async(std::launch::async, [&] {
    return RunCommand({"sh", "-c", "exec 3>" + fifo + "; sleep 100000 & wait"}, seconds(1000),
                      stop.get_token());
  });
  const UniqueFd alive(open(fifo.c_str(), O_RDONLY | O_CLOEXEC));  // opens once the child runs
  stop.request_stop();
  EXPECT_THAT(running.get(), HasStatus(absl::StatusCode::kCancelled, "sleep 100000"));
  char byte;
  EXPECT_EQ(read(alive.get(), &byte, 1), 0) << "the child and its own have ended";
  EXPECT_THAT(RunCommand({"sleep", "100000"}, seconds(1000), stop.get_token()),
              HasStatus(absl::StatusCode::kCancelled, "sleep 100000"));
}

TEST(RunChecked, SaysWhatTheProgramSaid) {
  EXPECT_THAT(RunChecked({"sh", "-c", "echo it is broken; exit 1"}, seconds(30)),
              HasStatus(absl::StatusCode::kInternal, "it is broken"));
  // What a program says may be another's words.
  const CommandResult hostile{1, "name \x1b[2J\nfaked line \xff" + std::string(2000, '\a')};
  const std::string said = Message(CheckExit("mkfs", hostile));
  EXPECT_EQ(said.find_first_not_of(" !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`"
                                   "abcdefghijklmnopqrstuvwxyz{|}~"),
            std::string::npos)
      << said;
  EXPECT_LT(said.size(), 1100u);
  EXPECT_EQ(Message(CheckExit("mkfs", {3, "a\x1b[2J\n"})), "mkfs: exit code 3: a\\x1b[2J");
  EXPECT_OK(CheckExit("mkfs", {0, "words"}));
}

TEST(Spawn, PassesDescriptorsAndClosesOthers) {
  TempDir dir;
  int pipe_fds[2];
  ASSERT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
  UniqueFd read_end(pipe_fds[0]), write_end(pipe_fds[1]);
  const UniqueFd stray(open("/dev/null", O_RDONLY));  // not close-on-exec
  SpawnOptions options;
  options.argv = {"sh", "-c", "ls /proc/self/fd | tr '\\n' ' ' >&5"};
  options.fds = {{write_end.get(), 5}};
  const auto pid = Spawn(options);
  ASSERT_OK(pid);
  write_end.reset();
  char text[256] = {};
  ASSERT_GT(read(read_end.get(), text, sizeof text - 1), 0);
  waitpid(*pid, nullptr, 0);
  EXPECT_STREQ(text, "0 1 2 3 5 ");  // 3 is the directory that ls reads
}

TEST(Spawn, TheOomScoreIsAsAskedAndNoCoreIsLeft) {
  // What the caller has leaves no trace in the child. Lower than one's own takes a privilege.
  const int own = std::stoi(FileSystem::Real().Read("/proc/self/oom_score_adj", 16).value_or("0"));
  const TempDir dir;
  SpawnOptions options;
  options.argv = {"sh", "-c", "cat /proc/self/oom_score_adj; ulimit -c; ulimit -H -c"};
  options.log_path = dir / "log";
  for (const int score : {std::min(own + 1, 1000), 1000, -1000}) {
    options.oom_score_adj = score;
    const auto pid = Spawn(options);
    ASSERT_OK(pid);
    waitpid(*pid, nullptr, 0);
    const std::string said = FileSystem::Real().Read(options.log_path, 64).value_or("");
    if (score != -1000) {
      EXPECT_EQ(said, fmt::format("{}\n0\n0\n", score));
    } else {
      EXPECT_THAT(said, ::testing::AnyOf("-1000\n0\n0\n", fmt::format("{}\n0\n0\n", own)));
    }
    unlink(options.log_path.c_str());
  }
}

TEST(Spawn, FailuresNameTheStep) {
  SpawnOptions options;
  options.argv = {"true"};
  options.netns_path = "/nonexistent/netns";
  EXPECT_THAT(Spawn(options), HasStatus(absl::StatusCode::kNotFound, "/nonexistent/netns"));
  options.netns_path.clear();
  options.cgroup_procs_files = {"/nonexistent/cgroup.procs"};
  EXPECT_THAT(Spawn(options), HasStatus(absl::StatusCode::kNotFound, "/nonexistent/cgroup.procs"));
}

}  // namespace
}  // namespace lamina
