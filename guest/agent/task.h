// One process of a container (its init or an exec) as the host sees it: streams, terminal, state, exit.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "guest/agent/crun.h"
#include "guest/agent/processes.h"
#include "guest/protocol/stdio_mux.h"

namespace lamina::guest {

struct TaskStreams {
  bool terminal = false;
  uint32_t in = 0, out = 0, err = 0;  // mux streams, 0: none
};

// The pipes (or the console socket) of a process that crun is about to start.
class TaskStdio {
 public:
  static absl::StatusOr<TaskStdio> Open(const TaskStreams& streams, std::string console_path);
  CrunStdio for_crun() const;
  // Adds --console-socket for a terminal.
  void AddArguments(std::vector<std::string>& arguments) const;

 private:
  friend class Task;
  UniqueFd child_in_, child_out_, child_err_;
  UniqueFd in_, out_, err_;
  std::optional<ConsoleSocket> console_;
};

struct TaskExit {
  ProcessExit exit;
  bool oom_killed = false;
};

// Thread-safe. Held by shared_ptr: the mux's callbacks keep it alive.
class Task : public std::enable_shared_from_this<Task> {
 public:
  enum class State { kCreated, kStarting, kStarted, kFailed, kGone };

  Task(StdioMux& mux, ProcessTable& processes, TaskStreams streams)
      : mux_(mux), processes_(processes), streams_(streams) {}

  const TaskStreams& streams() const { return streams_; }

  // kCreated -> kStarting: OK for exactly one caller. FailedPrecondition otherwise.
  absl::Status BeginStart();
  // crun has succeeded: connects the streams and remembers the process.
  absl::Status Attach(TaskStdio stdio, ProcessRef process);
  // crun has failed: whoever waits gets 127.
  void Fail();
  // It will never (again) run; whoever waits gets NotFound, unless it has exited.
  void Abandon();

  ProcessRef process() const;
  // Called before the exit is told to waiters.
  void SetOomKilled(bool killed);

  // Blocks until it has been started and has exited, or failed to start. NotFound when it is deleted before.
  absl::StatusOr<TaskExit> Wait();
  // Kills it if it runs and waits at most 10 s for its end.
  absl::Status Kill();

  absl::Status Resize(uint16_t width, uint16_t height);
  // Waits at most 2 s until its output has been taken by the host, then drops the streams.
  void CloseStreams();

 private:
  void OutputDone();

  StdioMux& mux_;
  ProcessTable& processes_;
  const TaskStreams streams_;
  mutable Mutex mutex_;
  CondVar changed_;
  State state_ GUARDED_BY(mutex_) = State::kCreated;
  ProcessRef process_ GUARDED_BY(mutex_);
  bool oom_killed_ GUARDED_BY(mutex_) = false;
  UniqueFd master_ GUARDED_BY(mutex_);
  int open_outputs_ GUARDED_BY(mutex_) = 0;
  uint16_t width_ GUARDED_BY(mutex_) = 0, height_ GUARDED_BY(mutex_) = 0;
};

using TaskRef = std::shared_ptr<Task>;

}  // namespace lamina::guest
