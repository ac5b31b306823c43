#include "base/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "base/printable.h"
#include "base/status.h"

namespace lamina {
namespace {

using std::chrono::steady_clock;

// What the child reports through a close-on-exec pipe when it cannot exec.
struct ChildFailure {
  int error;
  char step[160];
};

[[noreturn]] void FailChild(int pipe_fd, const char* step, const char* detail) {
  ChildFailure failure{errno, {}};
  size_t used = 0;
  for (const char* part : {step, " ", detail}) {
    while (*part != '\0' && used + 1 < sizeof failure.step) failure.step[used++] = *part++;
  }
  [[maybe_unused]] const ssize_t n = write(pipe_fd, &failure, sizeof failure);
  _exit(127);
}

// While it lives, what this thread forks is the first process of a pid namespace of its own.
class ChildrenInOwnPidNamespace {
 public:
  absl::Status Begin() {
    ours_.reset(open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC));
    if (!ours_) return ErrnoStatus(errno, "open /proc/self/ns/pid");
    if (unshare(CLONE_NEWPID) != 0) return ErrnoStatus(errno, "make a pid namespace");
    begun_ = true;
    return absl::OkStatus();
  }
  // Another child of this thread would fail, or be another's neighbour.
  absl::Status End() {
    if (std::exchange(begun_, false) && setns(ours_.get(), CLONE_NEWPID) != 0)
      return ErrnoStatus(errno, "return to the pid namespace");
    return absl::OkStatus();
  }

 private:
  UniqueFd ours_;
  bool begun_ = false;
};

}  // namespace

// Resolved in the parent, because execvpe and getenv are not safe between fork and exec.
std::string FindProgram(const std::string& name) {
  if (name.find('/') != std::string::npos) return name;
  const char* path = getenv("PATH");
  std::string_view rest = path != nullptr ? path : "/usr/sbin:/usr/bin:/sbin:/bin";
  while (!rest.empty()) {
    const size_t colon = rest.find(':');
    const std::string candidate = std::string(rest.substr(0, colon)) + "/" + name;
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
    rest = colon == std::string_view::npos ? std::string_view() : rest.substr(colon + 1);
  }
  return name;
}

absl::StatusOr<pid_t> Spawn(const SpawnOptions& options) {
  if (options.argv.empty()) return absl::InvalidArgumentError("spawn: empty command line");
  const std::string program = FindProgram(options.argv[0]);
  std::vector<char*> argv, env;
  for (const std::string& arg : options.argv) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  for (const std::string& var : options.env) env.push_back(const_cast<char*>(var.c_str()));
  env.push_back(nullptr);
  char** child_env = options.env.empty() ? environ : env.data();

  const std::string oom_score_adj =
      options.oom_score_adj ? std::to_string(*options.oom_score_adj) : std::string();
  int high = 2;
  for (const auto& [ours, theirs] : options.fds) high = std::max(high, theirs);

  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  UniqueFd report_read(pipe_fds[0]), report_write(pipe_fds[1]);

  ChildrenInOwnPidNamespace own_pids;
  if (options.setup != nullptr && options.setup->own_pid_namespace())
    RETURN_IF_ERROR(Annotate(own_pids.Begin(), "start " + options.argv[0]));
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  const pid_t pid = fork();
  if (pid == 0) {
    for (int signal = 1; signal < 32; ++signal) ::signal(signal, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    const int base = high + 1;
    // Out of the way of the numbers that the child will use.
    const int report = fcntl(report_write.get(), F_DUPFD_CLOEXEC, base);
    if (report < 0) _exit(127);
    if (options.new_session) setsid();
    for (const std::string& file : options.cgroup_procs_files) {
      const int fd = open(file.c_str(), O_WRONLY | O_CLOEXEC);
      if (fd < 0 || write(fd, "0", 1) != 1) FailChild(report, "join cgroup", file.c_str());
      close(fd);
    }
    const rlimit no_core{0, 0};
    if (!options.core_files && setrlimit(RLIMIT_CORE, &no_core) != 0) FailChild(report, "setrlimit", "core");
    if (!oom_score_adj.empty()) {
      const int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
      const bool written = fd >= 0 && write(fd, oom_score_adj.data(), oom_score_adj.size()) ==
                                          static_cast<ssize_t>(oom_score_adj.size());
      if (!written && errno != EACCES && errno != EPERM) FailChild(report, "set", "oom_score_adj");
      close(fd);
    }
    if (!options.netns_path.empty()) {
      const int fd = open(options.netns_path.c_str(), O_RDONLY | O_CLOEXEC);
      if (fd < 0 || setns(fd, CLONE_NEWNET) != 0) FailChild(report, "join netns", options.netns_path.c_str());
      close(fd);
    }
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int log = null;
    if (!options.log_path.empty()) {
      log = open(options.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
      if (log < 0) FailChild(report, "open log", options.log_path.c_str());
    }
    if (dup2(null, 0) < 0 || dup2(log, 1) < 0 || dup2(log, 2) < 0) FailChild(report, "dup2", "stdio");
    std::vector<std::pair<int, int>> moved = options.fds;
    for (auto& entry : moved) {
      entry.first = fcntl(entry.first, F_DUPFD_CLOEXEC, base);
      if (entry.first < 0) FailChild(report, "dup", "fd");
    }
    for (const auto& entry : moved) {
      if (dup2(entry.first, entry.second) < 0) FailChild(report, "dup2", "fd");
    }
    for (int fd = 3; fd <= high; ++fd) {
      const bool wanted =
          std::any_of(moved.begin(), moved.end(), [&](const auto& e) { return e.second == fd; });
      if (!wanted) close(fd);
    }
    if (!options.working_directory.empty() && chdir(options.working_directory.c_str()) != 0) {
      FailChild(report, "chdir", options.working_directory.c_str());
    }
    // The report pipe must survive until exec: mark, don't close, everything above the child's own
    // descriptors.
    syscall(SYS_close_range, base, ~0U, 4U /* CLOSE_RANGE_CLOEXEC */);
    if (const char* failed = options.setup != nullptr ? options.setup->Enter() : nullptr; failed != nullptr)
      FailChild(report, "confine:", failed);
    execve(program.c_str(), argv.data(), child_env);
    FailChild(report, "exec", program.c_str());
  }
  const int fork_error = errno;
  const absl::Status back = own_pids.End();
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
  if (pid < 0) return ErrnoStatus(fork_error, "fork for " + options.argv[0]);
  if (!back.ok()) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    return Annotate(back, "start " + options.argv[0]);
  }
  report_write.reset();
  ChildFailure failure{};
  ssize_t n;
  do {
    n = read(report_read.get(), &failure, sizeof failure);
  } while (n < 0 && errno == EINTR);
  if (n == 0) return pid;
  waitpid(pid, nullptr, 0);
  if (n != sizeof failure)
    return MakeStatus(absl::StatusCode::kInternal, "start {}: child died", options.argv[0]);
  return Annotate(ErrnoStatus(failure.error, failure.step), "start " + options.argv[0]);
}

absl::StatusOr<CommandResult> RunCommand(const std::vector<std::string>& argv,
                                         std::chrono::milliseconds timeout, const std::stop_token& stop) {
  SpawnOptions options;
  options.argv = argv;
  return RunSpawned(std::move(options), timeout, stop);
}

absl::StatusOr<CommandResult> RunSpawned(SpawnOptions options, std::chrono::milliseconds timeout,
                                         const std::stop_token& stop) {
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  UniqueFd out_read(pipe_fds[0]), out_write(pipe_fds[1]);
  options.fds.emplace_back(out_write.get(), 1);
  options.fds.emplace_back(out_write.get(), 2);
  ASSIGN_OR_RETURN(const pid_t pid, Spawn(options));
  out_write.reset();

  // Until the child is waited for, its pid is its own: whoever asks to stop ends its group.
  const auto end_group = [pid] { kill(-pid, SIGKILL); };
  std::optional<std::stop_callback<decltype(end_group)>> on_stop(std::in_place, stop, end_group);
  const auto deadline = steady_clock::now() + timeout;
  CommandResult result;
  constexpr size_t kLimit = 64 * 1024;
  bool timed_out = false;
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - steady_clock::now()).count();
    if (left <= 0) {
      timed_out = true;
      break;
    }
    pollfd poll_fd{out_read.get(), POLLIN, 0};
    const int ready = poll(&poll_fd, 1, static_cast<int>(std::min<int64_t>(left, 60'000)));
    if (ready < 0 && errno != EINTR) break;
    if (ready <= 0) continue;
    char buffer[4096];
    const ssize_t n = read(out_read.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    result.output.append(buffer,
                         std::min(static_cast<size_t>(n), kLimit - std::min(kLimit, result.output.size())));
  }
  if (timed_out) kill(-pid, SIGKILL);
  siginfo_t ended{};
  while (waitid(P_PID, static_cast<id_t>(pid), &ended, WEXITED | WNOWAIT) < 0 && errno == EINTR) {
  }
  on_stop.reset();
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (stop.stop_requested())
    return MakeStatus(absl::StatusCode::kCancelled, "{}: ended before it was done",
                      fmt::join(options.argv, " "));
  if (timed_out) {
    return MakeStatus(absl::StatusCode::kDeadlineExceeded, "{}: not finished after {} ms",
                      fmt::join(options.argv, " "), timeout.count());
  }
  result.exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  return result;
}

absl::Status CheckExit(const std::string& command, const CommandResult& result) {
  if (result.exit_code == 0) return absl::OkStatus();
  std::string_view tail = result.output;
  if (tail.size() > 512) tail = tail.substr(tail.size() - 512);
  while (!tail.empty() && tail.back() == '\n') tail.remove_suffix(1);
  return MakeStatus(absl::StatusCode::kInternal, "{}: exit code {}: {}", command, result.exit_code,
                    Printable(tail, 1024));
}

absl::Status RunChecked(const std::vector<std::string>& argv, std::chrono::milliseconds timeout,
                        const std::stop_token& stop) {
  ASSIGN_OR_RETURN(const CommandResult result, RunCommand(argv, timeout, stop));
  return CheckExit(fmt::format("{}", fmt::join(argv, " ")), result);
}

}  // namespace lamina
