#include "cri/events.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "base/ttrpc/thread.h"
#include "proto/containerd/task.pb.h"

namespace lamina::cri {
namespace {

constexpr size_t kMaxQueued = 1024;
constexpr std::chrono::seconds kCallTimeout{5};
constexpr std::chrono::seconds kRetryAfter{1};
constexpr int kRefusals = 5;
constexpr size_t kStackBytes = 64 * 1024;

}  // namespace

struct EventPublisher::State {
  std::string address, ns;
  Mutex mutex;
  CondVar changed;
  bool running GUARDED_BY(mutex) = false;  // the thread that sends
  bool stopping GUARDED_BY(mutex) = false;
  bool sending GUARDED_BY(mutex) = false;
  std::deque<containerd::ForwardRequest> queue GUARDED_BY(mutex);
};

EventPublisher::EventPublisher(std::string address, std::string ns) : state_(std::make_shared<State>()) {
  state_->address = std::move(address);
  state_->ns = std::move(ns);
}

EventPublisher::~EventPublisher() {
  MutexLock lock(state_->mutex);
  state_->stopping = true;
  state_->changed.NotifyAll();
}

void EventPublisher::Publish(const std::string& topic, const std::string& type_url,
                             const google::protobuf::MessageLite& event) {
  if (state_->address.empty()) return;
  containerd::ForwardRequest request;
  containerd::Envelope* envelope = request.mutable_envelope();
  const int64_t nanos = UnixNanos(Clock::Real().Wall());
  envelope->mutable_timestamp()->set_seconds(nanos / 1'000'000'000);
  envelope->mutable_timestamp()->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  envelope->set_namespace_(state_->ns);
  envelope->set_topic(topic);
  envelope->mutable_event()->set_type_url(type_url);
  event.SerializeToString(envelope->mutable_event()->mutable_value());
  MutexLock lock(state_->mutex);
  if (state_->queue.size() >= kMaxQueued) {
    LogWarning("containerd takes no events: {} is dropped", state_->queue.front().envelope().topic());
    state_->queue.pop_front();
  }
  state_->queue.push_back(std::move(request));
  state_->changed.NotifyAll();
  if (state_->running) return;
  // Without a thread the events wait, and the next one tries again.
  const absl::Status started = ttrpc::StartThread(kStackBytes, [state = state_] { Run(state); });
  state_->running = started.ok();
  if (!started.ok()) LogWarning("containerd is not told of {} yet: {}", topic, Message(started));
}

void EventPublisher::Flush(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  MutexLock lock(state_->mutex);
  while (!state_->address.empty() && (!state_->queue.empty() || state_->sending)) {
    if (!state_->changed.WaitUntil(state_->mutex, deadline)) return;
  }
}

void EventPublisher::Run(const std::shared_ptr<State>& state) {
  std::unique_ptr<ttrpc::Client> client;
  for (;;) {
    containerd::ForwardRequest request;
    {
      MutexLock lock(state->mutex);
      state->sending = false;
      state->changed.NotifyAll();
      while (state->queue.empty() && !state->stopping) state->changed.Wait(state->mutex);
      if (state->queue.empty()) return;
      request = std::move(state->queue.front());
      state->queue.pop_front();
      state->sending = true;
    }
    for (int answers = 0;;) {
      absl::Status status = absl::OkStatus();
      if (client == nullptr || !client->connected()) {
        auto dialled = ttrpc::Client::Dial(state->address, "containerd");
        status = dialled.status();
        if (dialled.ok()) client = std::move(*dialled);
      }
      if (status.ok()) {
        containerd::Nothing nothing;
        status = client->Call("containerd.services.events.ttrpc.v1.Events", "Forward", request, &nothing,
                              kCallTimeout, {{"containerd-namespace-ttrpc", state->ns}});
      }
      if (status.ok()) break;
      const bool away = status.code() == absl::StatusCode::kUnavailable ||
                        status.code() == absl::StatusCode::kDeadlineExceeded ||
                        status.code() == absl::StatusCode::kNotFound;  // no socket: it restarts
      if (!away && ++answers == kRefusals) {
        LogWarning("event {} is refused: {}", request.envelope().topic(), Message(status));
        break;
      }
      MutexLock lock(state->mutex);
      const auto again = std::chrono::steady_clock::now() + kRetryAfter;
      while (!state->stopping && state->changed.WaitUntil(state->mutex, again)) {
      }
      if (state->stopping) return;
    }
  }
}

}  // namespace lamina::cri
