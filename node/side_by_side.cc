#include "node/side_by_side.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "base/mutex.h"
#include "base/ttrpc/thread.h"

namespace lamina::node {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

struct Batch {
  size_t left = 0;
};

}  // namespace

struct SideBySide::Shared {
  struct Queued {
    std::shared_ptr<Batch> batch;
    Job job;
  };
  explicit Shared(size_t most) : max_threads(most) {}

  void Work() {
    mutex.Lock();
    while (!queue.empty()) {
      Queued next = std::move(queue.front());
      queue.pop_front();
      mutex.Unlock();
      next.job();
      next.job = nullptr;
      mutex.Lock();
      --next.batch->left;
      changed.NotifyAll();
    }
    --threads;
    changed.NotifyAll();
    mutex.Unlock();
  }

  const size_t max_threads;
  Mutex mutex;
  CondVar changed;
  std::deque<Queued> queue GUARDED_BY(mutex);
  size_t threads GUARDED_BY(mutex) = 0;
};

SideBySide::SideBySide(size_t max_threads, ThreadStarter starter)
    : shared_(std::make_shared<Shared>(max_threads)),
      starter_(starter ? std::move(starter) : [](std::function<void()> body) {
        return ttrpc::StartThread(kStackBytes, std::move(body));
      }) {}

SideBySide::~SideBySide() {
  MutexLock lock(shared_->mutex);
  while (shared_->threads > 0) shared_->changed.Wait(shared_->mutex);
}

absl::Status SideBySide::Run(std::vector<Job> jobs, std::chrono::milliseconds within) {
  const auto deadline = std::chrono::steady_clock::now() + within;
  const auto batch = std::make_shared<Batch>();
  Shared& shared = *shared_;
  shared.mutex.Lock();
  batch->left = jobs.size();
  for (Job& job : jobs) shared.queue.push_back({batch, std::move(job)});
  absl::Status status;
  // Counted, and only while there is work: threads that are done with it end while others are still being
  // made.
  for (size_t more = std::min(shared.max_threads - shared.threads, jobs.size());
       more > 0 && !shared.queue.empty(); --more) {
    ++shared.threads;
    shared.mutex.Unlock();
    status = starter_([shared = shared_] { shared->Work(); });
    shared.mutex.Lock();
    if (status.ok()) continue;
    --shared.threads;  // those that there are do the work
    break;
  }
  const bool nobody = shared.threads == 0 && batch->left > 0;
  while (!nobody && batch->left > 0 && shared.changed.WaitUntil(shared.mutex, deadline)) {
  }
  std::erase_if(shared.queue, [&](const Shared::Queued& queued) { return queued.batch == batch; });
  shared.mutex.Unlock();
  return nobody ? status : absl::OkStatus();
}

}  // namespace lamina::node
