// The other end of a connection, played by a test: laminad, the guest's agent.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/ttrpc/method.h"

namespace lamina::ttrpc {

// Thread-safe. A method without a handler answers an empty response.
class FakeCaller : public Caller {
 public:
  // payload of the request -> payload of the response; runs on the caller's thread, and may block.
  using Handler = std::function<absl::StatusOr<std::string>(const std::string& payload)>;

  // `f`: StatusOr<Response>(const Request&). Replaces the one before.
  template <typename Request, typename Response, typename F>
  void Handle(const Method<Request, Response>& method, F f) {
    Put(method.name, [f = std::move(f)](const std::string& payload) -> absl::StatusOr<std::string> {
      Request request;
      if (!request.ParseFromString(payload)) return absl::InvalidArgumentError("the request does not parse");
      absl::StatusOr<Response> response = f(request);
      if (!response.ok()) return response.status();
      return response->SerializeAsString();
    });
  }

  absl::Status Call(std::string_view service, std::string_view method,
                    const google::protobuf::MessageLite& request, google::protobuf::MessageLite* response,
                    std::chrono::nanoseconds timeout,
                    const std::map<std::string, std::string>& metadata = {}) override;

  void CancelCalls() override;
  void Close() override;
  bool connected() const override;
  // Cancellations from now on reach the call that this thread makes next; without it, from that call on.
  void ExpectCall();
  // It makes none after all.
  static void ForgetCall();
  // For handlers that play a peer which does not answer: waits until their call is cancelled, at most
  // `timeout`, and answers what such a call does.
  absl::Status WaitCancelled(std::chrono::milliseconds timeout);
  // As if the connection were lost, or were there again.
  void SetConnected(bool connected);

  // The call with this number (from 0; negative: none) answers `error` and reaches no handler.
  void FailAt(int number, absl::Status error = absl::UnavailableError("injected: the connection ended"));
  // The methods called so far, in order.
  std::vector<std::string> calls() const;
  // How often one of them was called.
  int Count(std::string_view method) const;

 private:
  void Put(const char* method, Handler handler);

  mutable Mutex mutex_;
  CondVar cancelled_;
  int cancels_ GUARDED_BY(mutex_) = 0;
  bool closed_ GUARDED_BY(mutex_) = false;
  bool connected_ GUARDED_BY(mutex_) = true;
  std::map<std::string, Handler, std::less<>> handlers_ GUARDED_BY(mutex_);
  std::vector<std::string> calls_ GUARDED_BY(mutex_);
  int fail_at_ GUARDED_BY(mutex_) = -1;
  absl::Status error_ GUARDED_BY(mutex_);
};

}  // namespace lamina::ttrpc
