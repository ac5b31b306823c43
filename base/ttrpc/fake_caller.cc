#include "base/ttrpc/fake_caller.h"

#include <google/protobuf/message_lite.h>

#include <algorithm>

namespace lamina::ttrpc {
namespace {

// How often calls had been cancelled when this thread's call began; -1: it makes none.
thread_local int cancels_before = -1;

}  // namespace

absl::Status FakeCaller::Call(std::string_view /*service*/, std::string_view method,
                              const google::protobuf::MessageLite& request,
                              google::protobuf::MessageLite* response, std::chrono::nanoseconds /*timeout*/,
                              const std::map<std::string, std::string>& /*metadata*/) {
  Handler handler;
  {
    MutexLock lock(mutex_);
    const int number = static_cast<int>(calls_.size());
    calls_.emplace_back(method);
    if (cancels_before < 0) cancels_before = cancels_;
    absl::Status failed;
    if (closed_) failed = absl::CancelledError("the connection was closed here");
    if (failed.ok() && !connected_) failed = absl::UnavailableError("the connection ended");
    if (failed.ok() && number == fail_at_) failed = error_;
    if (!failed.ok()) {
      ForgetCall();
      return failed;
    }
    const auto it = handlers_.find(method);
    if (it != handlers_.end()) handler = it->second;
  }
  absl::StatusOr<std::string> payload =
      handler ? handler(request.SerializeAsString()) : absl::StatusOr<std::string>(std::string());
  ForgetCall();
  if (!payload.ok()) return payload.status();
  if (response != nullptr && !response->ParseFromString(*payload))
    return absl::InternalError("the answer does not parse");
  return absl::OkStatus();
}

void FakeCaller::CancelCalls() {
  MutexLock lock(mutex_);
  ++cancels_;
  cancelled_.NotifyAll();
}

void FakeCaller::Close() {
  MutexLock lock(mutex_);
  closed_ = true;
  ++cancels_;
  cancelled_.NotifyAll();
}

void FakeCaller::ExpectCall() {
  MutexLock lock(mutex_);
  cancels_before = cancels_;
}

void FakeCaller::ForgetCall() { cancels_before = -1; }

bool FakeCaller::connected() const {
  MutexLock lock(mutex_);
  return connected_;
}

absl::Status FakeCaller::WaitCancelled(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  MutexLock lock(mutex_);
  while (cancels_ == cancels_before) {
    if (!cancelled_.WaitUntil(mutex_, deadline))
      return absl::DeadlineExceededError("nobody cancelled the call");
  }
  return absl::CancelledError("the call was cancelled here");
}

void FakeCaller::SetConnected(bool connected) {
  MutexLock lock(mutex_);
  connected_ = connected;
}

void FakeCaller::FailAt(int number, absl::Status error) {
  MutexLock lock(mutex_);
  fail_at_ = number;
  error_ = std::move(error);
}

std::vector<std::string> FakeCaller::calls() const {
  MutexLock lock(mutex_);
  return calls_;
}

int FakeCaller::Count(std::string_view method) const {
  MutexLock lock(mutex_);
  return static_cast<int>(std::count(calls_.begin(), calls_.end(), method));
}

void FakeCaller::Put(const char* method, Handler handler) {
  MutexLock lock(mutex_);
  handlers_[method] = std::move(handler);
}

}  // namespace lamina::ttrpc
