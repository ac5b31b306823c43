#include "guest/agent/processes.h"

#include <signal.h>
#include <sys/wait.h>

#include <cerrno>
#include <utility>

#include "base/status.h"

namespace lamina::guest {
namespace {

// A bound for what a container that forks without end can make the agent remember.
constexpr size_t kMaxStrangers = 4096;

ProcessExit Decode(int wait_status) {
  ProcessExit exit;
  exit.status = WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
  return exit;
}

}  // namespace

absl::StatusOr<ProcessRef> ProcessTable::Start(const SpawnOptions& options) {
  MutexLock lock(mutex_);
  ASSIGN_OR_RETURN(const pid_t pid, Spawn(options));
  auto process = std::make_shared<TrackedProcess>();
  process->pid_ = pid;
  live_[pid] = process;
  return process;
}

ProcessTable::AdoptScope::AdoptScope(ProcessTable& table) : table_(table) {
  MutexLock lock(table_.mutex_);
  ++table_.adopting_;
}

ProcessTable::AdoptScope::~AdoptScope() {
  MutexLock lock(table_.mutex_);
  if (--table_.adopting_ == 0) table_.strangers_.clear();
}

ProcessRef ProcessTable::Adopt(pid_t pid, std::function<void()> on_exit) {
  auto process = std::make_shared<TrackedProcess>();
  process->pid_ = pid;
  {
    MutexLock lock(mutex_);
    const auto gone = strangers_.find(pid);
    if (gone == strangers_.end()) {
      process->on_exit_ = std::move(on_exit);
      live_[pid] = process;
      return process;
    }
    process->exit_ = gone->second;
    strangers_.erase(gone);
  }
  if (on_exit) on_exit();
  return process;
}

std::optional<ProcessExit> ProcessTable::Wait(const ProcessRef& process,
                                              std::optional<std::chrono::steady_clock::time_point> deadline) {
  MutexLock lock(mutex_);
  while (!process->exit_) {
    if (!deadline) {
      changed_.Wait(mutex_);
    } else if (!changed_.WaitUntil(mutex_, *deadline) && !process->exit_) {
      return std::nullopt;
    }
  }
  return process->exit_;
}

std::optional<ProcessExit> ProcessTable::Exit(const ProcessRef& process) {
  MutexLock lock(mutex_);
  return process->exit_;
}

absl::Status ProcessTable::Signal(const ProcessRef& process, int signal) {
  MutexLock lock(mutex_);
  if (process->exit_ || live_.count(process->pid_) == 0) {
    return MakeStatus(absl::StatusCode::kNotFound, "process {} has ended", process->pid_);
  }
  if (kill(process->pid_, signal) != 0) {
    return ErrnoStatus(errno, fmt::format("send signal {} to process {}", signal, process->pid_));
  }
  return absl::OkStatus();
}

absl::Status ProcessTable::SignalGroup(const ProcessRef& process, int signal) {
  MutexLock lock(mutex_);
  if (process->exit_ || live_.count(process->pid_) == 0) return absl::OkStatus();
  kill(-process->pid_, signal);
  return absl::OkStatus();
}

void ProcessTable::Reap() {
  for (;;) {
    ProcessRef ended;
    ProcessExit exit;
    std::function<void()> on_exit;
    {
      MutexLock lock(mutex_);
      int status = 0;
      const pid_t pid = waitpid(-1, &status, WNOHANG);
      if (pid <= 0) return;
      exit = Decode(status);
      const auto found = live_.find(pid);
      if (found == live_.end()) {
        if (adopting_ > 0 && strangers_.size() < kMaxStrangers) strangers_[pid] = exit;
        continue;
      }
      ended = found->second;
      live_.erase(found);
      on_exit = std::exchange(ended->on_exit_, nullptr);
    }
    if (on_exit) on_exit();
    {
      MutexLock lock(mutex_);
      ended->exit_ = exit;
    }
    changed_.NotifyAll();
  }
}

}  // namespace lamina::guest
