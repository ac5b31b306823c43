// Sockets of the host that containers have mounted: each connection that is made in the guest is carried to
// one that the shim makes, where the node's configuration lets it.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/ttrpc/method.h"
#include "cri/threads.h"
#include "guest/protocol/stdio_mux.h"

namespace lamina::cri {

// Of one pod, all its sockets together: who connects while so many are open waits.
inline constexpr size_t kMaxOpenConnections = 64;

// Thread-safe.
class HostSockets {
 public:
  // `allowed`: volumes.sockets; a path, or a folder that ends in "/" and stands for all that lie in it.
  explicit HostSockets(std::vector<std::string> allowed) : allowed_(std::move(allowed)) {}
  // Its agent is closed by then (PodVm::Abort), or its VM has ended.
  ~HostSockets() { Stop(); }

  // The guest, which must live as long as this is used. `alive`: while the VM lives.
  void Attach(ttrpc::Caller& agent, guest::StdioMux& mux, std::function<bool()> alive);

  // Makes a socket in the guest that stands for this one, once; gives its path there. A thread waits for its
  // connections as long as the pod lives. PermissionDenied names path and option; NotFound: no such file.
  absl::StatusOr<std::string> Offer(const std::string& source);

  // Nothing is waited for any more. Idempotent.
  void Stop();

 private:
  absl::Status CheckAllowed(const std::string& real, const std::string& source) const;
  void Serve(const std::string& name, const std::string& path);
  // False: the guest is gone.
  bool ServeOne(const std::string& name, const std::string& path);
  bool Pause();
  // A place among the connections of the pod that are open, until it is let go of; waits for one. Null: Stop.
  std::shared_ptr<void> TakePlace();

  const std::vector<std::string> allowed_;
  ttrpc::Caller* agent_ = nullptr;
  guest::StdioMux* mux_ = nullptr;
  std::function<bool()> alive_;
  std::atomic<uint32_t> next_stream_{0};
  // What outlives this in the streams of the mux.
  struct Places {
    Mutex mutex;
    CondVar changed;
    size_t open GUARDED_BY(mutex) = 0;
    bool stopped GUARDED_BY(mutex) = false;
  };
  const std::shared_ptr<Places> places_ = std::make_shared<Places>();
  Mutex mutex_;
  CondVar changed_;
  bool stopped_ GUARDED_BY(mutex_) = false;
  std::map<std::string, std::string> offered_ GUARDED_BY(mutex_);  // path -> name
  Threads threads_;
};

}  // namespace lamina::cri
