#include "cri/process.h"

#include <fcntl.h>

#include <cerrno>
#include <utility>

#include "base/status.h"

namespace lamina::cri {

absl::StatusOr<std::shared_ptr<ProcessStdio>> ProcessStdio::Open(const StdioPaths& paths,
                                                                 guest::StdioMux& mux, uint32_t first_id) {
  std::shared_ptr<ProcessStdio> stdio(new ProcessStdio());
  stdio->mux_ = &mux;
  stdio->first_id_ = first_id;
  absl::Status status;
  const auto open_fifo = [&](const std::string& path, int flags) {
    UniqueFd fd(open(path.c_str(), flags | O_NONBLOCK | O_CLOEXEC));
    if (!fd && status.ok()) status = ErrnoStatus(errno, "open stdio " + path);
    return fd;
  };
  if (!paths.in.empty()) {
    UniqueFd source = open_fifo(paths.in, O_RDONLY);
    UniqueFd holder = open_fifo(paths.in, O_WRONLY);
    if (status.ok()) {
      stdio->ids_.in = first_id;
      status = mux.AttachSource(first_id, std::move(source), nullptr);
      MutexLock lock(stdio->mutex_);
      stdio->stdin_holder_ = std::move(holder);
    }
  }
  uint32_t id = first_id;
  for (auto [path, slot] : {std::pair<const std::string*, uint32_t*>(&paths.out, &stdio->ids_.out),
                            {&paths.err, &stdio->ids_.err}}) {
    ++id;
    // A terminal has one stream; containerd names a stderr FIFO all the same.
    if (!status.ok() || path->empty() || (paths.terminal && slot == &stdio->ids_.err)) continue;
    // Read-write never blocks and never breaks: a reader that is away only fills the pipe.
    UniqueFd sink = open_fifo(*path, O_RDWR);
    if (!status.ok()) break;
    *slot = id;
    {
      MutexLock lock(stdio->open_->mutex);
      ++stdio->open_->outputs;
    }
    status = mux.AttachSink(id, std::move(sink), [open = stdio->open_] {
      MutexLock lock(open->mutex);
      --open->outputs;
      open->changed.NotifyAll();
    });
  }
  if (!status.ok()) {
    stdio->DrainAndClose(std::chrono::milliseconds(0));
    return status;
  }
  return stdio;
}

void ProcessStdio::CloseStdin() {
  MutexLock lock(mutex_);
  stdin_holder_.reset();
}

void ProcessStdio::DrainAndClose(std::chrono::milliseconds timeout) {
  CloseStdin();
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  {
    MutexLock lock(open_->mutex);
    while (open_->outputs > 0 && open_->changed.WaitUntil(open_->mutex, deadline)) {
    }
  }
  for (const uint32_t id : {ids_.in, ids_.out, ids_.err}) {
    if (id != 0) mux_->Close(id);
  }
}

ProcessStatus Process::status() const {
  MutexLock lock(mutex_);
  return status_;
}

uint32_t Process::pid() const {
  MutexLock lock(mutex_);
  return pid_;
}

void Process::SetPid(uint32_t pid) {
  MutexLock lock(mutex_);
  pid_ = pid;
}

void Process::SetRunning(uint32_t pid) {
  MutexLock lock(mutex_);
  pid_ = pid;
  if (status_ == ProcessStatus::kCreated) status_ = ProcessStatus::kRunning;
}

bool Process::ClaimStart() {
  MutexLock lock(mutex_);
  if (status_ != ProcessStatus::kCreated || start_claimed_) return false;
  start_claimed_ = true;
  return true;
}

bool Process::ClaimKill() {
  MutexLock lock(mutex_);
  return !std::exchange(kill_claimed_, true);
}

bool Process::SetExited(ExitInfo exit) {
  MutexLock lock(mutex_);
  if (exit_) return false;
  exit_ = exit;
  status_ = ProcessStatus::kStopped;
  exited_.NotifyAll();
  return true;
}

std::optional<ExitInfo> Process::exit() const {
  MutexLock lock(mutex_);
  return exit_;
}

ExitInfo Process::WaitExit() {
  MutexLock lock(mutex_);
  while (!exit_) exited_.Wait(mutex_);
  return *exit_;
}

bool Process::WaitExitUntil(std::chrono::steady_clock::time_point deadline) {
  MutexLock lock(mutex_);
  while (!exit_ && exited_.WaitUntil(mutex_, deadline)) {
  }
  return exit_.has_value();
}

}  // namespace lamina::cri
