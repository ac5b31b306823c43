#include "guest/agent/task.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>

#include "base/log.h"
#include "base/status.h"

namespace lamina::guest {
namespace {

using std::chrono::steady_clock;

constexpr auto kKillTimeout = std::chrono::seconds(10);
constexpr auto kDrainTimeout = std::chrono::seconds(2);

absl::Status OpenPipe(UniqueFd& read_end, UniqueFd& write_end) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  read_end.reset(fds[0]);
  write_end.reset(fds[1]);
  return absl::OkStatus();
}

UniqueFd Duplicate(const UniqueFd& fd) { return UniqueFd(fcntl(fd.get(), F_DUPFD_CLOEXEC, 3)); }

}  // namespace

absl::StatusOr<TaskStdio> TaskStdio::Open(const TaskStreams& streams, std::string console_path) {
  TaskStdio stdio;
  if (streams.terminal) {
    ASSIGN_OR_RETURN(stdio.console_, ConsoleSocket::Listen(std::move(console_path)));
    return stdio;
  }
  if (streams.in != 0) RETURN_IF_ERROR(OpenPipe(stdio.child_in_, stdio.in_));
  if (streams.out != 0) RETURN_IF_ERROR(OpenPipe(stdio.out_, stdio.child_out_));
  if (streams.err != 0) RETURN_IF_ERROR(OpenPipe(stdio.err_, stdio.child_err_));
  return stdio;
}

CrunStdio TaskStdio::for_crun() const { return {child_in_.get(), child_out_.get(), child_err_.get()}; }

void TaskStdio::AddArguments(std::vector<std::string>& arguments) const {
  if (!console_) return;
  arguments.push_back("--console-socket");
  arguments.push_back(console_->path());
}

absl::Status Task::BeginStart() {
  MutexLock lock(mutex_);
  if (state_ != State::kCreated) return absl::FailedPreconditionError("the process has been started already");
  state_ = State::kStarting;
  return absl::OkStatus();
}

absl::Status Task::Attach(TaskStdio stdio, ProcessRef process) {
  stdio.child_in_.reset();
  stdio.child_out_.reset();
  stdio.child_err_.reset();
  UniqueFd master;
  if (stdio.console_) {
    ASSIGN_OR_RETURN(master, stdio.console_->ReceiveMaster());
    if (streams_.out != 0) stdio.out_ = Duplicate(master);
    if (streams_.in != 0) stdio.in_ = Duplicate(master);
  }
  {
    MutexLock lock(mutex_);
    if (state_ == State::kGone) return absl::CancelledError("the process has been deleted");
    state_ = State::kStarted;
    process_ = std::move(process);
    master_ = std::move(master);
    open_outputs_ = (stdio.out_ ? 1 : 0) + (stdio.err_ ? 1 : 0);
    if (master_ && width_ > 0) {
      const winsize size{height_, width_, 0, 0};
      ioctl(master_.get(), TIOCSWINSZ, &size);
    }
  }
  changed_.NotifyAll();
  // The callbacks hold the task: it outlives the mux's interest in it.
  const auto self = shared_from_this();
  absl::Status status;
  const auto output = [&](uint32_t stream, UniqueFd fd) {
    if (!fd) return;
    const absl::Status attached = mux_.AttachSource(stream, std::move(fd), [self] { self->OutputDone(); });
    if (!attached.ok()) {
      status.Update(attached);
      OutputDone();
    }
  };
  output(streams_.out, std::move(stdio.out_));
  output(streams_.err, std::move(stdio.err_));
  if (stdio.in_) status.Update(mux_.AttachSink(streams_.in, std::move(stdio.in_), nullptr));
  return status;
}

void Task::OutputDone() {
  {
    MutexLock lock(mutex_);
    if (open_outputs_ > 0) --open_outputs_;
  }
  changed_.NotifyAll();
}

void Task::Fail() {
  {
    MutexLock lock(mutex_);
    state_ = State::kFailed;
  }
  changed_.NotifyAll();
}

void Task::Abandon() {
  {
    MutexLock lock(mutex_);
    if (state_ != State::kFailed && !process_) state_ = State::kGone;
  }
  changed_.NotifyAll();
}

ProcessRef Task::process() const {
  MutexLock lock(mutex_);
  return process_;
}

void Task::SetOomKilled(bool killed) {
  MutexLock lock(mutex_);
  oom_killed_ = killed;
}

absl::StatusOr<TaskExit> Task::Wait() {
  ProcessRef process;
  {
    MutexLock lock(mutex_);
    while (!process_ && state_ != State::kFailed && state_ != State::kGone) changed_.Wait(mutex_);
    if (state_ == State::kGone) return absl::NotFoundError("the process was deleted before it was started");
    if (state_ == State::kFailed) return TaskExit{{127}, false};
    process = process_;
  }
  const auto exit = processes_.Wait(process, std::nullopt);
  MutexLock lock(mutex_);
  return TaskExit{*exit, oom_killed_};
}

absl::Status Task::Kill() {
  const ProcessRef running = process();
  if (!running || processes_.Exit(running)) return absl::OkStatus();
  processes_.Signal(running, SIGKILL).IgnoreError();
  if (!processes_.Wait(running, steady_clock::now() + kKillTimeout)) {
    return MakeStatus(absl::StatusCode::kDeadlineExceeded, "process {} has not ended {} s after SIGKILL",
                      running->pid(), kKillTimeout.count());
  }
  return absl::OkStatus();
}

absl::Status Task::Resize(uint16_t width, uint16_t height) {
  if (!streams_.terminal) return absl::FailedPreconditionError("the process has no terminal");
  MutexLock lock(mutex_);
  width_ = width;
  height_ = height;
  if (!master_) return absl::OkStatus();
  const winsize size{height, width, 0, 0};
  if (ioctl(master_.get(), TIOCSWINSZ, &size) != 0) return ErrnoStatus(errno, "resize the terminal");
  return absl::OkStatus();
}

void Task::CloseStreams() {
  {
    const auto deadline = steady_clock::now() + kDrainTimeout;
    MutexLock lock(mutex_);
    while (open_outputs_ > 0 && changed_.WaitUntil(mutex_, deadline)) {
    }
    if (open_outputs_ > 0)
      LogWarning("dropping output that the host has not taken in {} s", kDrainTimeout.count());
    master_.reset();
  }
  for (const uint32_t stream : {streams_.in, streams_.out, streams_.err}) {
    if (stream != 0) mux_.Close(stream);
  }
}

}  // namespace lamina::guest
