// The threads of one object, which ends with them.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "base/mutex.h"
#include "base/ttrpc/thread.h"

namespace lamina::cri {

// Thread-safe. The bodies may use the object that holds this as its last member: it is destroyed first, and
// waits.
class Threads {
 public:
  Threads() = default;
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  ~Threads() { Wait(); }

  // ResourceExhausted when the kernel gives no thread.
  absl::Status Start(size_t stack_bytes, std::function<void()> body) {
    {
      MutexLock lock(state_->mutex);
      ++state_->running;
    }
    const absl::Status status =
        ttrpc::StartThread(stack_bytes, [state = state_, body = std::move(body)]() mutable {
          body();
          body = nullptr;
          state->Ended();
        });
    if (!status.ok()) state_->Ended();
    return status;
  }

  // Until none is left.
  void Wait() {
    MutexLock lock(state_->mutex);
    while (state_->running > 0) state_->ended.Wait(state_->mutex);
  }

 private:
  struct State {
    Mutex mutex;
    CondVar ended;
    int running GUARDED_BY(mutex) = 0;
    void Ended() {
      MutexLock lock(mutex);
      --running;
      ended.NotifyAll();
    }
  };
  const std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace lamina::cri
