// Child processes without a shell.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"

namespace lamina {

struct CommandResult {
  int exit_code = 0;   // 128 + signal when killed
  std::string output;  // stdout and stderr together, at most 64 KiB, the rest dropped
};

// Runs argv (argv[0] searched in PATH) with stdin from /dev/null and waits. After `timeout` the child's
// process group is killed: DeadlineExceeded. NotFound when the program does not exist. A non-zero exit is NOT
// an error here. `stop` requested: the group is killed at once, Cancelled. Thread-safe.
absl::StatusOr<CommandResult> RunCommand(const std::vector<std::string>& argv,
                                         std::chrono::milliseconds timeout, const std::stop_token& stop = {});

// OK for an exit code of 0, else Internal with the command's name and the end of its output, as one line of
// printable ASCII.
absl::Status CheckExit(const std::string& command, const CommandResult& result);
// RunCommand and CheckExit.
absl::Status RunChecked(const std::vector<std::string>& argv, std::chrono::milliseconds timeout,
                        const std::stop_token& stop = {});

// The whole environment of a program that needs nothing else of ours.
inline constexpr char kProgramPath[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

// What a child does to itself between fork and exec (base/confinement.h).
class ChildSetup {
 public:
  virtual ~ChildSetup() = default;
  // The child is the first process of a pid namespace: with it ends all that it started. Wants CAP_SYS_ADMIN.
  virtual bool own_pid_namespace() const = 0;
  // Called in the child, last before exec: system calls only. Null, or the step that failed (errno says why).
  virtual const char* Enter() const = 0;
};

struct SpawnOptions {
  std::vector<std::string> argv;
  std::vector<std::string> env;                 // KEY=VALUE; empty: inherit
  std::string working_directory;                // empty: inherit
  std::string netns_path;                       // joined before exec, empty: inherit
  std::string log_path;                         // stdout+stderr appended here (0600); empty: /dev/null
  std::vector<std::pair<int, int>> fds;         // {ours, number in the child}; all others are closed on exec
  std::vector<std::string> cgroup_procs_files;  // the child writes itself into each before exec
  bool new_session = true;
  // -1000 to 1000; none: inherited. Who may not go so low leaves the child where it is.
  std::optional<int> oom_score_adj;
  bool core_files = false;  // false: none, of no process below it: it could hold a guest's memory
  const ChildSetup* setup = nullptr;
};

// Forks and execs; returns when exec has succeeded (or its error, with what failed). The caller reaps the
// pid.
absl::StatusOr<pid_t> Spawn(const SpawnOptions& options);

// RunCommand with more to say: `options.fds` may not name 1 and 2, which are the output.
absl::StatusOr<CommandResult> RunSpawned(SpawnOptions options, std::chrono::milliseconds timeout,
                                         const std::stop_token& stop = {});

// The program's path: `name` itself where it has a slash, else the first in PATH, else `name`.
std::string FindProgram(const std::string& name);

}  // namespace lamina
