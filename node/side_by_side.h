// Jobs that may hang for a while, on a bounded number of threads: one that hangs delays no other.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"

namespace lamina::node {

// Thread-safe.
class SideBySide {
 public:
  using Job = std::function<void()>;
  using ThreadStarter = std::function<absl::Status(std::function<void()> body)>;

  // Threads are made when there is work and end when there is none. `starter` replaces the real one in tests.
  explicit SideBySide(size_t max_threads, ThreadStarter starter = nullptr);
  // Waits for the jobs that are under way; each has to end by itself.
  ~SideBySide();
  SideBySide(const SideBySide&) = delete;
  SideBySide& operator=(const SideBySide&) = delete;

  // Runs the jobs, begun in this order, and returns when all are done or `within` has passed. Those not begun
  // by then are dropped; those under way go on, so they may use nothing of the caller's. What a job has found
  // it says itself. ResourceExhausted: no thread could be made, and none has run.
  absl::Status Run(std::vector<Job> jobs, std::chrono::milliseconds within);

 private:
  struct Shared;
  const std::shared_ptr<Shared> shared_;
  const ThreadStarter starter_;
};

}  // namespace lamina::node
