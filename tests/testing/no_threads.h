#pragma once

namespace lamina::testing {

// While one of these lives, pthread_create fails with EAGAIN in this program, as it does once the cgroup's
// pids or the memory for stacks are used up; also for std::thread. Link lamina_no_threads.
class NoThreads {
 public:
  NoThreads();
  ~NoThreads();
  NoThreads(const NoThreads&) = delete;
  NoThreads& operator=(const NoThreads&) = delete;
  // How many starts have failed since.
  int refused() const;
};

}  // namespace lamina::testing
